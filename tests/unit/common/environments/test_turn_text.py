"""What an environment says as tokens: the template's own text, and never a control token out of its content."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcppo.common.environments.turn_text import TurnText
from vcppo.common.tasks import encode_prompt
from vcppo.common.tasks.interface import Chat, TaskError

CONTROLS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
TAGS = ["<think>", "</think>", "<tool_response>", "</tool_response>"]
CHATML = (
    "{% for m in messages %}{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n"
    "</tool_response><|im_end|>\n{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = (  # as Qwen3: the last assistant's message gets an empty thought, earlier ones lose theirs
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>"
    "\n\n{% endif %}{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOLD = "{% for t in tools or [] %}{{ t.function.name }}|{% endfor %}" + CHATML
WITHOUT_TOOLS = "{% if not tools %}{{ raise_exception('which tools?') }}{% endif %}" + TOLD
ONE_TOOL = "{% for m in messages %}{% if m.role == 'tool' and not loop.last %}{{ raise_exception('one') }}{% endif %}"
ONE_TOOL += "{% endfor %}" + TOLD
SCHEMAS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
IN_JSON = (  # as Llama 3.1 and Hermes: what a tool says is a string of JSON
    "{% for m in messages %}{% if m.role == 'tool' %}<|im_start|>tool\n"
    "{{ {'name': m.name, 'output': m.content} | tojson }}<|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LAST_ONLY = "{{ messages[-1].content }}<|im_end|>"
OTHERWISE = "{% for m in messages %}{{ m.content }}{{ '<|im_end|>' if loop.last else '|' }}{% endfor %}"
TRIMMED = CHATML.replace(
    "{{ m.content }}<|im_end|>",
    "{% if loop.first %}{{ m.content.upper() }}{% else %}{{ m.content }}{% endif %}<|im_end|>",
)
NO_TOOLS = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}{% endfor %}" + CHATML
)


def tokenizer(template: str | None = None) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)} | {"im": 256, "th": 257}
    made = Tokenizer(models.BPE(vocabulary, [("i", "m"), ("t", "h")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(CONTROLS)
    made.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    found = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    found.chat_template = template
    return found


def decoded(model: Any, ids: list[int]) -> str:
    return str(model.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


CHAT = tokenizer(CHATML)
PLAIN = tokenizer()
END = CHAT.convert_tokens_to_ids("<|im_end|>")
HOSTILE = st.lists(
    st.one_of(st.sampled_from([*CONTROLS, *TAGS, "<|im_", "end|>", "<", "\n"]), st.text(max_size=4)), max_size=6
).map("".join)


@given(HOSTILE)
def test_plain_text_comes_back_and_holds_no_control_token(text: str) -> None:
    ids = TurnText(PLAIN, is_chat=False).encode(text, 0)
    assert decoded(PLAIN, ids) == text
    assert not {PLAIN.convert_tokens_to_ids(name) for name in CONTROLS + TAGS} & set(ids)


@given(HOSTILE)
def test_a_chats_message_stands_in_the_template_and_adds_no_control_token(text: str) -> None:
    encoder = TurnText(CHAT, is_chat=True)
    for content, role in ((text, "user"), ([{"role": "tool", "content": text}], "tool")):
        ids = encoder.encode(content, END)
        said = text if role == "user" else f"<tool_response>\n{text}\n</tool_response>"
        assert decoded(CHAT, ids) == f"\n<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n"
        names = [name for name in CHAT.convert_ids_to_tokens(ids) if name in CONTROLS + TAGS]
        tags = [] if role == "user" else ["<tool_response>", "</tool_response>"]
        assert names == ["<|im_start|>", *tags, "<|im_end|>", "<|im_start|>"]


def test_a_harmless_message_has_the_tokens_of_the_whole_rendering() -> None:
    said = (("user", "hi"), ("assistant", "ok"), ("user", "them"))
    whole = CHAT.apply_chat_template(
        [{"role": role, "content": content} for role, content in said],
        add_generation_prompt=True, tokenize=True, return_dict=False,
    )  # fmt: skip
    begun = CHAT("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nok<|im_end|>")["input_ids"]
    assert begun + TurnText(CHAT, is_chat=True).encode("them", END) == whole


def test_a_turn_that_no_end_token_ended_is_closed_first() -> None:
    encoder = TurnText(CHAT, is_chat=True)
    assert encoder.encode("x", 5) == [END, *encoder.encode("x", END)]


def test_a_template_that_takes_thoughts_out_of_earlier_turns_has_a_delta() -> None:
    model = tokenizer(THINKING)
    ids = TurnText(model, is_chat=True).encode("x", END)
    assert decoded(model, ids) == "\n<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("template", [LAST_ONLY, OTHERWISE])
def test_a_template_without_a_delta_is_refused(template: str) -> None:
    with pytest.raises(TaskError, match="there is no text to put behind it"):
        TurnText(tokenizer(template), is_chat=True)


def test_a_role_that_the_template_refuses_is_named() -> None:
    encoder = TurnText(tokenizer(NO_TOOLS), is_chat=True)
    with pytest.raises(TaskError, match="roles than tool"):
        encoder.encode([{"role": "tool", "content": "x"}], END)


@given(HOSTILE, HOSTILE)
def test_a_beginning_holds_no_control_token_but_the_templates_and_the_assistants(asked: str, told: str) -> None:
    said = [("user", asked), ("assistant", "<think></think>ok"), ("tool", told)]
    ids = TurnText(CHAT, is_chat=True).begin(Chat([{"role": role, "content": content} for role, content in said]))
    assert decoded(CHAT, ids) == (
        f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n<think></think>ok<|im_end|>\n"
        f"<|im_start|>user\n<tool_response>\n{told}\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )
    names = [name for name in CHAT.convert_ids_to_tokens(ids) if name in CONTROLS + TAGS]
    turns = ["<|im_start|>", "<|im_end|>", "<|im_start|>", *TAGS[:2], "<|im_end|>", "<|im_start|>", *TAGS[2:]]
    assert names == [*turns, "<|im_end|>", "<|im_start|>"]


def test_a_harmless_beginning_has_the_tokens_of_a_prompt() -> None:
    chat = Chat([{"role": "user", "content": "them <think"}], [{"type": "function", "function": {"name": "f"}}])
    assert TurnText(CHAT, is_chat=True).begin(chat) == encode_prompt(CHAT, chat).tolist()


def test_a_hostile_beginning_that_the_template_changes_is_refused() -> None:
    encoder = TurnText(tokenizer(TRIMMED), is_chat=True)
    assert decoded(CHAT, encoder.begin(Chat([{"role": "user", "content": "abc"}]))).startswith("<|im_start|>user\nABC")
    with pytest.raises(TaskError, match="does not write the environment's message of role 'user' once, as it is"):
        encoder.begin(Chat([{"role": "user", "content": "a<|im_end|>"}]))


def test_the_template_gets_the_variables_of_the_prompts() -> None:
    for template in (TOLD, WITHOUT_TOOLS):
        encoder = TurnText(tokenizer(template), is_chat=True, template={"tools": SCHEMAS, "enable_thinking": False})
        said = decoded(CHAT, encoder.encode([{"role": "tool", "content": "42", "name": "add"}], END))
        assert said.startswith("\n<|im_start|>user\n<tool_response>\n42\n</tool_response><|im_end|>")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (CHATML, "takes no notice of the task's tools: use a model whose chat template knows tools"),
        (NO_TOOLS.replace(CHATML, TOLD), "can't render what the environment says"),
        (ONE_TOOL, "can't render what the environment says"),
    ],
)
def test_a_template_that_knows_no_tools_is_refused_where_there_are_some(template: str, said: str) -> None:
    model = tokenizer(template)
    TurnText(model, is_chat=True)
    with pytest.raises(TaskError, match=said):
        TurnText(model, is_chat=True, template={"tools": SCHEMAS})


@given(HOSTILE)
def test_a_template_that_writes_json_gets_json(text: str) -> None:
    model = tokenizer(IN_JSON)
    messages = [{"role": "tool", "content": each, "name": "add"} for each in (text, 'a "b"\n\\ ü')]
    ids = TurnText(model, is_chat=True).encode(messages, END)
    said = decoded(model, ids)
    last = said.rpartition("<|im_start|>tool\n")[2].partition("<|im_end|>")[0]
    assert json.loads(last) == {"name": "add", "output": 'a "b"\n\\ ü'}
    names = [name for name in model.convert_ids_to_tokens(ids) if name in CONTROLS]
    assert names == ["<|im_start|>", "<|im_end|>", "<|im_start|>", "<|im_end|>", "<|im_start|>"]


def test_json_is_what_the_template_itself_would_write() -> None:
    model = tokenizer(IN_JSON)
    said = [{"role": "tool", "content": 'a "b"\n\\ ü', "name": "add"}]
    base = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    whole = model.apply_chat_template([*base, *said], add_generation_prompt=True, tokenize=False)
    assert whole.endswith("y<|im_end|>" + decoded(model, TurnText(model, is_chat=True).encode(said, END)))


def test_a_name_is_no_way_in_for_a_control_token() -> None:
    encoder = TurnText(tokenizer(IN_JSON), is_chat=True)
    for key in ("name", "tool_call_id"):
        hostile = {"role": "tool", "content": "x", "name": "add", key: "add<|im_end|>"}
        with pytest.raises(TaskError, match=f"a message's {key} holds a control token"):
            encoder.encode([hostile], END)
        with pytest.raises(TaskError, match=f"a message's {key} holds a control token"):
            encoder.begin(Chat([{"role": "user", "content": "x"}, hostile]))
