"""What a generator's answers say about its weights: the decisions, on answers made up to differ in one known way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vcppo.learner.weights.canary import (
    Answers,
    CanaryProbe,
    Incarnation,
    first_update,
    later_update,
    limit_of,
    mean_difference,
)
from vcppo.learner.weights.transport_check import SentWeights, transport_fault

NUM = 256
ROUNDING = 0.08  # as of SmolLM2-135M in bfloat16
FACTOR = 3.0
RANDOM = np.random.default_rng(0)
SCORES = RANDOM.normal(-3, 2, NUM).astype(np.float32)
TOKENS = np.arange(NUM + 1, dtype=np.int32)


def probe(moved: float = 0.0, rounding: float | None = ROUNDING, tokens: Any = TOKENS) -> CanaryProbe:
    """The learner's log-probs, moved by an optimizer step."""
    return CanaryProbe(tokens, 1, (SCORES + moved * np.sign(SCORES + 3)).astype(np.float32), rounding)


def noisy(size: float, seed: int = 1) -> Any:
    """An engine's answer on the same weights: a mean difference of `size`."""
    return (SCORES + np.random.default_rng(seed).laplace(0, size, NUM)).astype(np.float32)


def known(size: float, again: Any = None) -> Incarnation:
    answer = noisy(size)
    found, _, fault = first_update(Answers(answer, answer if again is None else again), probe(), FACTOR, [1, 2])
    assert fault == ""
    assert found is not None
    return found


def test_rounding_of_a_real_bfloat16_model_passes_though_single_tokens_are_far_apart() -> None:
    answer = noisy(0.05)
    assert np.abs(answer - SCORES).max() > 0.2
    found, difference, fault = first_update(Answers(answer), probe(), FACTOR, [1, 2])
    assert (fault, found is not None) == ("", True)
    assert difference == pytest.approx(0.05, rel=0.2)


def test_a_tensor_that_did_not_arrive_is_told_with_figures_and_a_remedy() -> None:
    found, difference, fault = first_update(Answers(noisy(0.5)), probe(), FACTOR, [1, 2])
    assert found is None
    assert difference > 0.24
    assert "on 256 tokens; rounding explains at most 0.24 (0.08 x broadcast.noise_factor 3)" in fault
    assert "look for what vLLM says of weights in its log" in fault


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "no",
        [],
        [1.0],
        np.full(NUM, np.nan, np.float32),
        np.full(NUM, np.inf, np.float32),
        [[1.0]] * NUM,
        {"a": 1},
    ],
)
def test_an_answer_that_is_none_never_passes(answer: Any) -> None:
    assert mean_difference(answer, SCORES) == float("inf")
    assert first_update(Answers(answer), probe(), FACTOR, [1])[2] != ""
    assert later_update(known(0.05), Answers(answer), probe(), FACTOR, [1, 3])[1] != ""


def test_later_updates_are_held_to_what_the_first_one_measured() -> None:
    engine = known(1e-5)
    assert limit_of(engine, probe(), FACTOR) == pytest.approx(FACTOR * ROUNDING / 64)
    assert later_update(engine, Answers(noisy(1e-5, 2)), probe(), FACTOR, [1, 3])[1] == ""
    _, fault = later_update(engine, Answers(noisy(0.01, 3)), probe(), FACTOR, [1, 4])
    assert "measured at its updates so far" in fault


def test_the_reference_follows_what_rounding_does_to_the_model_of_now() -> None:
    """A policy that has sharpened rounds twice as badly on both sides: no alarm."""
    engine = known(0.05)
    assert later_update(engine, Answers(noisy(0.16, 2)), probe(), FACTOR, [1, 3])[1] != ""
    assert later_update(engine, Answers(noisy(0.16, 2)), probe(rounding=2 * ROUNDING), FACTOR, [1, 3])[1] == ""


def test_old_weights_are_found_by_an_answer_that_does_not_change_at_all() -> None:
    engine = known(0.05)
    stale = Answers(engine.answer)
    _, fault = later_update(engine, stale, probe(moved=1e-4), FACTOR, [1, 3])
    assert "as before the update, to the last bit; but 1 of 2 tensors changed" in fault
    assert "0.0001 nats" in fault
    moved = Answers((engine.answer + 1e-4).astype(np.float32))
    assert later_update(engine, moved, probe(moved=1e-4), FACTOR, [1, 3])[1] == ""


def test_an_unchanged_answer_is_right_where_nothing_changed() -> None:
    engine = known(0.05)
    assert later_update(engine, Answers(engine.answer), probe(), FACTOR, [1, 2])[1] == ""  # the same weights again
    assert later_update(engine, Answers(engine.answer), probe(), FACTOR, [1, 3])[1] == ""  # too little moved to tell
    assert later_update(engine, Answers(engine.answer), probe(moved=1e-5), FACTOR, [1, 3])[1] == ""  # rounding hides it
    other = probe(moved=1e-4, tokens=TOKENS + 1)
    assert later_update(engine, Answers(engine.answer), other, FACTOR, [1, 4])[1] == ""  # another question


def test_an_engine_that_does_not_repeat_itself_is_compared_with_what_it_differs_from_itself() -> None:
    engine = known(0.05, again=noisy(0.05) + np.float32(1e-4))
    assert engine.repeat == pytest.approx(1e-4, rel=0.1)
    same_again = Answers((engine.answer - 1e-4).astype(np.float32))
    assert "as when nothing changes" in later_update(engine, same_again, probe(moved=1e-2), FACTOR, [1, 3])[1]
    assert later_update(engine, same_again, probe(moved=1e-4), FACTOR, [1, 3])[1] == ""  # can't be told
    engine = known(0.05, again=noisy(0.05) + np.float32(1e-4))
    followed = Answers((engine.answer + 8e-3).astype(np.float32))
    assert later_update(engine, followed, probe(moved=1e-2), FACTOR, [1, 3])[1] == ""


def test_a_wrong_temperature_is_found_once_by_tokens_that_go_through_the_sampler() -> None:
    asked = probe()._replace(sampled_log_probs=SCORES[-16:])
    answer = noisy(0.05)
    right = np.concatenate([answer, SCORES[-16:]])
    assert first_update(Answers(answer, right), asked, FACTOR, [1])[2] == ""
    wrong = np.concatenate([answer, SCORES[-16:] - 1])
    assert (
        "another temperature than sampling.temperature" in first_update(Answers(answer, wrong), asked, FACTOR, [1])[2]
    )
    assert first_update(Answers(answer, answer), asked, FACTOR, [1])[2] != ""  # it did not answer that part


def test_a_probe_without_a_measured_rounding_takes_a_share_of_its_log_probs() -> None:
    assert probe(rounding=None).explained == pytest.approx(0.01 * np.abs(SCORES).mean())


# Transport

SENT = SentWeights(("a", "b", "c", "d", "e"), (1, 2, 3, 4, 5))


def report(sums: list[int], names: tuple[str, ...] = SENT.names) -> dict[str, Any]:
    from vcppo.common.tensor_sums import names_sum

    return {"names": names_sum(names), "sums": sums}


def test_every_worker_must_have_received_what_was_sent() -> None:
    right = report([1, 2, 3, 4, 5])
    assert transport_fault([right, right], SENT) == ""
    fault = transport_fault([right, report([1, 2, 9, 4, 5])], SENT)
    assert fault.startswith("worker 1: the bytes it received of c are not those that were sent")
    assert "a, b, c and 2 more" in transport_fault([report([0] * 5)], SENT)
    assert "names or order differ" in transport_fault([report([1, 2, 3, 4, 5], SENT.names[::-1])], SENT)
    assert "its head, tied to the embedding" in transport_fault([{**right, "stale": 1}], SENT)
    assert "it received 4 tensors, 5 were sent" in transport_fault([report([1, 2, 3, 4])], SENT)


@pytest.mark.parametrize("reports", [None, {}, [], [None], [{}], "x"])
def test_a_generator_that_returns_no_sums_is_at_fault(reports: Any) -> None:
    assert "it returned no sums" in transport_fault(reports, SENT)
