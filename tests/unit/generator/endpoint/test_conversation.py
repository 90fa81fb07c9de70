"""Whatever an agent asks: the policy's tokens are those sampled, and what does not go on from them begins anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcppo.common.records.trajectory import FinishReason, Segment, Trajectory, VersionSpan
from vcppo.common.records.wire import encode_trajectory
from vcppo.common.tasks.interface import ChatMessages
from vcppo.generator.endpoint.chat_messages import assistant_message
from vcppo.generator.endpoint.conversation import Conversation, Limits, Plan, Tools
from vcppo.generator.endpoint.refusal import Refusal

END = 1


class Turn(NamedTuple):
    """As an engine gives it."""

    token_ids: Any
    log_probs: Any
    version_spans: tuple[VersionSpan, ...]
    finish_reason: FinishReason = "stop"


class Letters:
    """A token a letter; a message begins with 2, an end of the policy's turn that is not there is added."""

    def prompt(self, messages: ChatMessages, tools: Tools) -> list[int]:
        return [*([3] if tools else []), *(token for each in messages for token in self._of(each))]

    def behind(self, messages: ChatMessages, tools: Tools, last_token: int) -> list[int]:
        return [*([] if last_token == END else [END]), *(token for each in messages for token in self._of(each))]

    def _of(self, message: dict[str, Any]) -> list[int]:
        return [2, *map(ord, message["content"]), *([END] if message["role"] == "assistant" else [])]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def turn(text: str, version: int = 0, reason: FinishReason = "stop") -> Turn:
    tokens = [*map(ord, text), *([END] if reason == "stop" else [])]
    return Turn(
        np.asarray(tokens, np.int32),
        np.full(len(tokens), -0.5, np.float32),
        (VersionSpan(version, len(tokens)),),
        reason,
    )


def conversation(
    response: int = 1000, sequence: int = 2000, turns: int = 99, segments: int = 99, message: int = 1 << 30
) -> Conversation:
    return Conversation(Letters(), Limits(response, sequence, turns, segments, message))


def say(of: Conversation, messages: ChatMessages, text: str, tools: Tools = None, **given: Any) -> ChatMessages:
    """One request and its reply; all messages so far."""
    reply = assistant_message(text, [])
    of.take(of.plan(messages, tools), turn(text, **given), text, reply)
    return [*messages, reply]


def text_of(tokens: Sequence[int]) -> str:
    return "".join({END: "$", 2: "|", 3: "T"}.get(int(token), chr(int(token))) for token in tokens)


def test_a_request_that_goes_on_adds_only_what_is_new() -> None:
    made = conversation()
    said = say(made, [user("ab")], "cd")
    plan = made.plan([*said, user("ef")], None)
    assert (text_of(plan.said), text_of(plan.token_ids), plan.room) == ("|ef", "|abcd$|ef", 1000 - 6)
    made.take(plan, turn("gh", version=3), "gh", assistant_message("gh", []))
    assert made.last.turns == ["cd", "gh"] and [each["content"] for each in made.last.said] == ["ab", "cd", "ef", "gh"]
    prompt, transcript, others = made.finish(0.5)
    assert (text_of(prompt), text_of(transcript.token_ids), others) == ("|ab", "cd$|efgh$", ())
    assert transcript.action_mask.tolist() == [True] * 3 + [False] * 3 + [True] * 3
    assert transcript.log_probs.tolist() == [-0.5] * 3 + [0.0] * 3 + [-0.5] * 3
    assert transcript.version_spans == (VersionSpan(0, 6), VersionSpan(3, 3))
    assert (transcript.finish_reason, made.num_segments, made.num_turns) == ("stop", 1, 2)


@pytest.mark.parametrize(
    ("messages", "tools"),
    [
        ([user("ab"), assistant_message("cX", []), user("ef")], None),
        ([user("aX"), assistant_message("cd", []), user("ef")], None),
        ([user("ab"), assistant_message("cd", []), user("ef")], [{"type": "function", "function": {"name": "f"}}]),
        ([user("ab"), assistant_message("cd", []), user("ef"), assistant_message("gh", []), user("i")], None),
        ([user("ab")], None),
        ([user("summary")], None),
    ],
    ids=["reply changed", "question changed", "other tools", "words of another", "asked again", "compacted"],
)
def test_a_request_that_does_not_go_on_begins_a_segment(messages: ChatMessages, tools: Tools) -> None:
    made = conversation()
    say(made, [user("ab")], "cd")
    plan = made.plan(messages, tools)
    assert plan.said == () and text_of(plan.token_ids) == text_of(Letters().prompt(messages, tools))
    made.take(plan, turn("z"), "z", assistant_message("z", []))
    prompt, transcript, others = made.finish(1.0)
    assert (text_of(prompt), text_of(transcript.token_ids)) == (text_of(plan.token_ids), "z$")
    (first,) = others
    assert (text_of(first.prompt_token_ids), text_of(first.response_token_ids)) == ("|ab", "cd$")
    assert made.num_segments == 2


def test_a_conversation_beside_another_leaves_it_where_it_was() -> None:
    made = conversation()
    said = say(made, [user("plan")], "ask")
    say(made, [user("other")], "done")
    say(made, [*said, user("done")], "end")
    prompt, transcript, others = made.finish(1.0)
    assert (text_of(prompt), text_of(transcript.token_ids)) == ("|plan", "ask$|doneend$")
    assert [text_of(each.response_token_ids) for each in others] == ["done$"]
    assert (made.num_segments, made.num_turns) == (2, 3)


def test_a_turn_that_is_cut_short_by_the_request_is_closed_before_the_next() -> None:
    made = conversation()
    said = say(made, [user("ab")], "cd", reason="length")
    say(made, [*said, user("ef")], "gh")
    assert text_of(made.finish(0.0)[1].token_ids) == "cd$|efgh$"


def test_without_room_a_request_is_refused_by_name_and_the_segment_is_cut() -> None:
    made = conversation(response=8)
    said = say(made, [user("ab")], "cd")
    with pytest.raises(Refusal, match=r"5 more tokens, room for 5 of sampling.max_response_tokens = 8") as refused:
        made.plan([*said, user("efgh")], None)
    assert (refused.value.code, refused.value.status) == ("context_length_exceeded", 400)
    _, transcript, _ = made.finish(1.0)
    assert (transcript.finish_reason, text_of(transcript.token_ids)) == ("length", "cd$")
    with pytest.raises(Refusal, match=r"a prompt of 9 tokens, generator.max_model_len = 9"):
        conversation(sequence=9).plan([user("abcdefgh")], None)
    assert conversation(sequence=10).plan([user("abcdefgh")], None).room == 1


def test_a_turn_without_an_end_in_all_the_room_is_cut() -> None:
    made = conversation(response=2)
    say(made, [user("ab")], "cd", reason="length")
    assert made.finish(1.0)[1].finish_reason == "length"
    other = conversation(response=3)
    say(other, [user("ab")], "cd")
    assert other.finish(1.0)[1].finish_reason == "stop"


def test_turns_are_counted_over_all_segments() -> None:
    made = conversation(turns=2)
    said = say(made, [user("a")], "b")
    say(made, [user("c")], "d")
    with pytest.raises(Refusal, match="are used up") as refused:
        made.plan([*said, user("e")], None)
    assert refused.value.code == "too_many_turns"


def test_a_request_that_would_begin_a_segment_too_many_is_refused_and_the_others_go_on() -> None:
    made = conversation(segments=2)
    said = say(made, [user("a")], "b")
    say(made, [user("c")], "d")
    with pytest.raises(Refusal, match=r"do not go on from .* task.max_segments = 2 have begun") as refused:
        made.plan([user("e")], None)
    assert (refused.value.code, refused.value.status) == ("too_many_segments", 400)
    say(made, [*said, user("f")], "g")
    prompt, transcript, others = made.finish(1.0)
    assert (text_of(prompt), text_of(transcript.token_ids), transcript.finish_reason) == ("|a", "b$|fg$", "stop")
    assert [(text_of(each.response_token_ids), each.finish_reason) for each in others] == [("d$", "stop")]


def test_a_segment_that_had_no_room_is_cut_and_the_one_after_is_not() -> None:
    """As an agent that sums up when its context is full."""
    made = conversation(response=8)
    said = say(made, [user("ab")], "cd")
    with pytest.raises(Refusal):
        made.plan([*said, user("efgh")], None)
    say(made, [user("sum")], "up")
    _, transcript, others = made.finish(1.0)
    assert (transcript.finish_reason, [each.finish_reason for each in others]) == ("stop", ["length"])


def message_of(made: Conversation) -> bytes:
    prompt, transcript, others = made.finish(1.0)
    return encode_trajectory(
        Trajectory(
            "rl-00000001-0@generator-0.1", "rl-00000001-0", "rl-00000001", 0, "agent", prompt, transcript.token_ids,
            transcript.action_mask, transcript.log_probs, transcript.version_spans, transcript.finish_reason, 1.0,
            "correct", "generator-0", 1, {"generate": 1.0, "verify": 2.0, "tools": 3.0}, segments=others,
        )
    )  # fmt: skip


@pytest.mark.parametrize("does", ["goes on", "begins anew"])
def test_a_rollout_stays_within_its_message(does: str) -> None:
    """However it fills it; and what is refused could not have been in it, but for the reckoning's margin."""
    made, limit = conversation(4000, 5000, 999, 999, message=200_000), 200_000

    def fill() -> None:
        said: ChatMessages = []
        for version in range(999):
            asked = [*said, user("a" * 30)]
            room = made.plan(asked, None).room
            said = say(made, asked, "b" * min(40, room - 1), version=version)
            if does == "begins anew" or len(said) > 40:
                said = []

    with pytest.raises(Refusal, match=r"above transport.max_message_mib = 0.190735: finish the agent") as refused:
        fill()
    assert (refused.value.code, refused.value.status) == ("rollout_too_large", 400)
    assert 0.4 * limit < len(message_of(made)) <= limit


def test_a_turn_is_cut_where_its_message_is_full() -> None:
    made = conversation(message=16 * 20 + 4 * 3)
    plan = made.plan([user("ab")], None)
    assert plan.room == 20
    made.take(plan, turn("x" * 20, reason="length"), "x" * 20, assistant_message("x" * 20, []))
    with pytest.raises(Refusal, match=r"transport.max_message_mib"):
        made.plan([user("other")], None)
    assert made.finish(1.0)[1].finish_reason == "length"


def test_nothing_asked_is_no_rollout() -> None:
    with pytest.raises(ValueError):
        conversation().finish(1.0)


WORDS = st.text("ab", max_size=3)


class Asked(NamedTuple):
    plan: Plan
    turn: Turn


@given(st.data())
def test_any_agent(data: st.DataObject) -> None:
    """Each prompt begins with all tokens of its segment; the rollout is the last request and its reply, exactly."""
    made = conversation(
        data.draw(st.integers(1, 60)), data.draw(st.integers(8, 80)), data.draw(st.integers(1, 8)),
        data.draw(st.integers(1, 4)),
    )  # fmt: skip
    known: list[ChatMessages] = [[]]
    taken: list[Asked] = []
    for version in range(data.draw(st.integers(1, 10))):
        messages = list(data.draw(st.sampled_from(known)))
        if messages and data.draw(st.integers(0, 3)) == 0:  # something in it is changed
            place = data.draw(st.integers(0, len(messages) - 1))
            messages[place] = {**messages[place], "content": data.draw(WORDS)}
        messages += [user(data.draw(WORDS)) for _ in range(data.draw(st.integers(1, 2)))]
        tools: Tools = data.draw(st.sampled_from([None, [{"type": "function", "function": {"name": "f"}}]]))
        before = made.num_segments
        try:
            plan = made.plan(messages, tools)
        except Refusal:
            continue
        assert plan.room >= 1 and made.num_segments == before
        if data.draw(st.integers(0, 3)) == 0:
            continue  # nobody takes it
        text = data.draw(WORDS)[: plan.room - 1]
        sampled = turn(text, version)
        if len(sampled.token_ids) == plan.room and data.draw(st.booleans()):
            sampled = sampled._replace(finish_reason="length")
        of_segment = [each for each in taken if each.plan.segment is plan.segment]
        whole = np.concatenate([of_segment[-1].plan.token_ids, of_segment[-1].turn.token_ids]) if of_segment else []
        assert plan.token_ids[: len(whole)].tolist() == list(whole)
        reply = assistant_message(text, [])
        made.take(plan, sampled, text, reply)
        taken.append(Asked(plan, sampled))
        known.append([*messages, reply])
    if not taken:
        return
    prompt, transcript, others = made.finish(1.0)
    last = taken[-1]
    whole = np.concatenate([last.plan.token_ids, last.turn.token_ids])
    assert [*prompt, *transcript.token_ids] == whole.tolist()
    actions = [token for each in taken if each.plan.segment is last.plan.segment for token in each.turn.token_ids]
    assert transcript.token_ids[transcript.action_mask].tolist() == actions
    assert (transcript.log_probs == np.where(transcript.action_mask, -0.5, 0.0)).all()
    lengths = {len(transcript.token_ids), len(transcript.action_mask), len(transcript.log_probs)}
    assert lengths == {sum(span.count for span in transcript.version_spans)}
    assert transcript.action_mask[-1]
    assert_each_turn_is_in_one_segment(taken, others)


def assert_each_turn_is_in_one_segment(taken: list[Asked], others: Sequence[Segment]) -> None:
    """In the order in which they ended, each exactly its last request and the reply, its own turns the actions."""
    ended = list(dict.fromkeys(each.plan.segment for each in reversed(taken)))[:0:-1]
    for segment, found in zip(ended, others, strict=True):
        turns = [each for each in taken if each.plan.segment is segment]
        whole = np.concatenate([turns[-1].plan.token_ids, turns[-1].turn.token_ids])
        assert [*found.prompt_token_ids, *found.response_token_ids] == whole.tolist()
        actions = [token for each in turns for token in each.turn.token_ids]
        assert found.response_token_ids[found.action_mask].tolist() == actions
        assert sum(span.count for span in found.version_spans) == len(found.response_token_ids)
        assert (found.behaviour_log_probs == np.where(found.action_mask, -0.5, 0.0)).all()
