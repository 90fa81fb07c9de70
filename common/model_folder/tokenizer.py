"""The tokenizer of a model folder: the one that its tokenizer.json says, in every process.

transformers 5 may build another one from the same folder: where tokenizer_config.json names the Llama class and
tokenizer.json holds byte-level BPE (R1-Distill-Llama, deepseek-math, Yi), `AutoTokenizer` loses every space. So what
it gives is compared with tokenizer.json itself, and replaced where they differ.

transformers is imported when a tokenizer is loaded, not before: this package stays light.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog

from vcppo.common.model_folder.stated_config import ModelError, find_file, read_stated
from vcppo.common.text.yaml_text import one_line

__all__ = [
    "TEXTS",
    "ModelError",
    "load_tokenizer",
    "lost_texts",
    "plain_difference",
    "save_tokenizer",
    "warn_of_plain_loading",
]

log = structlog.get_logger(__name__)

_FILE = "tokenizer.json"
_SETTINGS = "tokenizer_config.json"
_LARGE = 1000  # tokens: a smaller vocabulary is a toy's, which can't spell everything
TEXTS = (
    "What is the value of 12 plus 30? hello world",
    " leading space, trailing space ",
    "double  spaces,   triple\tand a tab",
    "one line\nanother\n\n  an indented one\r\n",
    "1 22 333 4444 1234567890 3.14159 1,000,000 -7 2^10",
    "def f(x):\n    return {'a': [x + 1, \"b\"]}  # comment\n",
    r"Let $x^2 + y_{1} = \frac{3}{4}$. Then \boxed{42}.",
    "<think>\nFirst, 6 × 7 = 42.\n</think>\n\nThe answer is 42.",
    "user\nHow's it going?\nassistant\nI'm fine. You're welcome; they've left.",
    "Grüße, çà et là, naïve Ünïcödé — “quotes” … ½ €",
    "数学の問題を解いてください。 Привет, мир! مرحبا",
    "emoji 🙂👩‍🔬 and CamelCase snake_case kebab-case UPPER",
)


def load_tokenizer(path: str, trust_remote_code: bool = False, field: str = "model.path") -> Any:
    """transformers' tokenizer of a model folder or hub id, which encodes and decodes as its tokenizer.json does.

    Args:
        field: the setting that names it, for the error.

    Raises:
        ModelError: there is none, or none that does so.
    """
    with _quiet():
        given, error = _by_class(path, trust_remote_code)
        reference = _reference(path, field)
    if reference is None:
        if given is None:
            raise _unusable(path, error, field)
        return _checked_alone(given, path, field)
    if given is not None and (_is_foreign_code(given) or (difference := _difference(given, reference, path)) is None):
        return given
    with _quiet():
        replacement, second_error = _by_file(path)
    if replacement is not None and (second := _difference(replacement, reference, path)) is None:
        reason = one_line(error) if given is None else f"{type(given).__name__} {difference}"
        log.warning("tokenizer_replaced", model=path, reason=reason, effect="tokenizer.json itself is used")
        return replacement
    if given is None:
        raise _unusable(path, error, field)
    seen = second if replacement is not None else one_line(second_error)
    raise ModelError(
        f"{field}: {path}: its tokenizer, as transformers loads it ({type(given).__name__}), {difference}, and "
        f"tokenizer.json can't be used in its place ({seen}): save the tokenizer again with "
        "PreTrainedTokenizerFast(tokenizer_file='tokenizer.json').save_pretrained()"
    )


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Into a model folder, beside its config.json."""
    tokenizer.save_pretrained(folder)
    warn_of_plain_loading(tokenizer, folder)


def warn_of_plain_loading(tokenizer: Any, folder: Path) -> None:
    """Log a warning when plain `AutoTokenizer` makes another tokenizer of the folder than was saved there."""
    if (difference := plain_difference(tokenizer, folder)) is not None:
        log.warning(
            "auto_tokenizer_loads_another",
            folder=str(folder),
            reason=difference,
            remedy="load it with transformers.PreTrainedTokenizerFast.from_pretrained, as vcppo does",
        )


def plain_difference(tokenizer: Any, folder: Path, texts: Iterable[str] = TEXTS) -> str | None:
    """How what plain `AutoTokenizer` makes of the folder differs from ``tokenizer``; None when it does not.

    For some architectures transformers takes the class by ``model_type``, whatever tokenizer_config.json says.
    """
    with _quiet():
        again, error = _by_class(str(folder), trust_remote_code=_is_foreign_code(tokenizer))
    if again is None:
        return f"it can't be loaded ({one_line(error)})"
    different = next((text for text in texts if _ids(again, text) != _ids(tokenizer, text)), None)
    return None if different is None else f"{type(again).__name__} gives other token ids for {different[:40]!r}"


def lost_texts(tokenizer: Any, texts: Iterable[str] = TEXTS) -> list[str]:
    """Those that don't come back from encoding and decoding: a verifier would see something else than was written."""
    return [text for text in texts if _decode(tokenizer, _ids(tokenizer, text)).strip() != text.strip()]


def _by_class(path: str, trust_remote_code: bool) -> tuple[Any, Exception | None]:
    """What transformers thinks it is, or why not."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code), None
    except Exception as error:  # noqa: BLE001  (a broken folder makes tokenizers raise nearly anything)
        return None, error


def _by_file(path: str) -> tuple[Any, Exception | None]:
    """tokenizer.json as it is, with the special tokens and chat template that the folder names."""
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast.from_pretrained(path), None
    except Exception as error:  # noqa: BLE001  (as above)
        return None, error


def _reference(path: str, field: str) -> Any:
    """tokenizers' own reading of tokenizer.json; None where there is none, or none that can be read."""
    from tokenizers import Tokenizer

    file = find_file(path, _FILE)
    if file is None:
        return None
    try:
        reference = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare Exception
        raise _unusable(path, error, field) from error
    reference.no_truncation()
    reference.no_padding()
    return reference


def _difference(tokenizer: Any, reference: Any, path: str) -> str | None:
    """How the tokenizer differs from tokenizer.json; None when it does not."""
    try:
        return _first_difference(tokenizer, reference, path)
    except Exception as error:  # noqa: BLE001  (tokenizers raises bare Exception: one that lacks its unknown token, say)
        return f"fails ({one_line(error)})"


def _first_difference(tokenizer: Any, reference: Any, path: str) -> str | None:
    added = {token.content: number for number, token in reference.get_added_tokens_decoder().items()}
    elsewhere = [token for token in tokenizer.get_added_vocab() if token not in added]
    given = read_stated(path, _SETTINGS)
    wraps_itself = any(given.get(name) is not None for name in ("add_bos_token", "add_eos_token"))
    for text in (*TEXTS, *_with_added(added), *_with_template(tokenizer)):
        if any(token in text for token in elsewhere):
            continue
        expected = reference.encode(text, add_special_tokens=False).ids
        if (ids := _ids(tokenizer, text)) != expected:
            return f"encodes {text[:40]!r} as {ids[:6]}, tokenizer.json as {expected[:6]}"
        decoded = reference.decode(expected, skip_special_tokens=False)
        if (seen := _decode(tokenizer, expected)) != decoded:
            return f"decodes {text[:40]!r} as {seen[:40]!r}, tokenizer.json as {decoded[:40]!r}"
        if not wraps_itself and tokenizer(text)["input_ids"] != reference.encode(text).ids:
            return f"adds other special tokens to {text[:40]!r} than tokenizer.json"
    return None


def _with_added(added: dict[str, int]) -> Iterator[str]:
    """Texts with special tokens in them: the first and the last few, which chat templates use."""
    names = list(added)
    for name in dict.fromkeys([*names[:8], *names[-8:]]):
        yield f"before{name}after {name} \n{name}"


def _with_template(tokenizer: Any) -> Iterator[str]:
    """A conversation in the model's own form; nothing where it has no template, or one that refuses these messages."""
    if not getattr(tokenizer, "chat_template", None):
        return
    messages = [{"role": "user", "content": "What is 6 × 7?"}, {"role": "assistant", "content": "It is 42."}]
    try:
        yield str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception as error:  # noqa: BLE001  (a template may raise whatever it likes)
        log.debug("chat_template_not_compared", error=one_line(error))


def _checked_alone(tokenizer: Any, path: str, field: str) -> Any:
    """Without a tokenizer.json there is nothing to compare with but the texts themselves."""
    lost = lost_texts(tokenizer, TEXTS[:6]) if len(tokenizer) > _LARGE else []
    if lost:
        raise ModelError(
            f"{field}: {path}: it has no tokenizer.json, and {type(tokenizer).__name__}, made of its other files by "
            f"transformers, does not give {lost[0][:40]!r} back: put a tokenizer.json into the folder"
        )
    return tokenizer


def _is_foreign_code(tokenizer: Any) -> bool:
    """A class that came with the model, which may know better than tokenizer.json."""
    return type(tokenizer).__module__.startswith("transformers_modules")


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _unusable(path: str, error: Exception | None, field: str) -> ModelError:
    return ModelError(
        f"{field}: {path} has no tokenizer that can be loaded: {one_line(error) if error else 'no files of one'}; "
        "give a model folder with a tokenizer.json, such as the one `vcppo sft` writes, or a Hugging Face id"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers warns of what is compared here anyway."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
