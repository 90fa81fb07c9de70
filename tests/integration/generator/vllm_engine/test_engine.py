"""A real vLLM engine and the requests users have: none ends it, and a seed gives the same tokens however it is run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer

from tests.integration.rig.scripted import make_tiny_model
from tests.paths import ROOT
from vcppo.generator.vllm_engine.stop_strings import judged_text

CHUNKS = {"enable_chunked_prefill": True, "max_num_batched_tokens": 288}
WHOLE = {"enable_chunked_prefill": False, "max_num_batched_tokens": 4096}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine") / "model"
    make_tiny_model(folder, hidden_size=64)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1024}))
    return folder


def drive(folder: Path, model: Path, task: str, **settings: Any) -> dict[str, Any]:
    tree = {
        "run": {"name": "engine", "folder": str(folder)},
        "model": {"path": str(model), "dtype": "float32"},
        "learner": {"micro_batch_tokens": 4096},
        "sampling": settings.pop("sampling", {"max_response_tokens": 40}),
        "task": settings.pop("environment", {}),
        "generator": {
            "max_model_len": 512,
            "max_in_flight": 256,
            "kv_cache_gib": 0.25,
            "enforce_eager": True,
            **settings,
        },
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "tests.integration.rig.engine_driver", str(folder / "c.yaml"), task]
    environment = os.environ | {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    try:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError):
        pytest.fail(f"exit {done.returncode}: {done.stdout[-2000:]}{done.stderr[-3000:]}")


@pytest.mark.slow  # four starts of vLLM
@pytest.mark.timeout(1500)
def test_no_prompt_length_or_concurrency_ends_the_engine_and_seeds_hold(tmp_path: Path, model: Path) -> None:
    """Prompts of 60 to 400 tokens, 8, 64 and 256 in flight, with seeds and a pause for weights in the middle."""
    whole = drive(tmp_path, model, "grid", engine_options=WHOLE)
    others = {
        "vLLM's own default": drive(tmp_path, model, "grid"),
        "small pieces": drive(tmp_path, model, "grid", engine_options=CHUNKS),
        "small pieces, little memory": drive(tmp_path, model, "grid", engine_options=CHUNKS, kv_cache_gib=0.0015),
    }
    assert "tokens" in whole, whole
    assert others["small pieces, little memory"]["preempted"] > 20
    for name, found in others.items():
        assert "tokens" in found, (name, found)
        for at_once, expected in whole["tokens"].items():
            same = [found["tokens"][at_once][prompt] == tokens for prompt, tokens in expected.items()]
            assert len(same) >= 64
            assert sum(same) >= 0.97 * len(same), (name, at_once, sum(same), len(same))  # rounding may tip a token


@pytest.mark.slow
def test_a_request_that_cannot_be_served_fails_by_name_and_no_other(tmp_path: Path, model: Path) -> None:
    found = drive(tmp_path, model, "refusals")
    said = found["said"]
    for name, words in {
        "as long as max_model_len": ("p-1", "512"),
        "longer": ("p-2", "513"),
        "empty": ("p-3", "no tokens"),
        "no response": ("p-4", "max_tokens"),
        "beyond the vocabulary": ("p-5", "is not one of the model's"),
        "negative": ("p-6", "token -3"),
        "canary": ("canary", "token 1000000000"),
    }.items():
        assert all(word in said[name] for word in words), (name, said[name])
    assert found["almost"] == 1
    assert len(found["beside"]) == 10 and min(found["beside"]) >= 1


@pytest.mark.slow
def test_too_small_a_kv_cache_is_refused_at_start_with_the_number_needed(tmp_path: Path, model: Path) -> None:
    error = drive(tmp_path, model, "refusals", kv_cache_gib=0.00001)["error"]
    assert "generator.kv_cache_gib = 1e-05" in error and "raise it" in error
    error = drive(tmp_path, model, "refusals", engine_options={"max_num_batched_tokenz": 8})["error"]
    assert error.startswith("generator.engine_options.max_num_batched_tokenz")
    error = drive(tmp_path, model, "refusals", sampling={"max_response_tokens": 8, "stop_token_ids": [10**6]})["error"]
    assert error.startswith("sampling.stop_token_ids: [1000000] are beyond")


@pytest.mark.slow
def test_stop_strings_cut_what_would_have_been_sampled(tmp_path: Path, model: Path) -> None:
    """With them, each response is a prefix of the one without: up to the first token that completes a stop string."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    free = drive(tmp_path, model, "stops")["rollouts"]
    vocabulary = {token: number for number, token in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))}
    stop, token = ["3", "7="], vocabulary["5"]
    cut = drive(tmp_path, model, "stops", sampling={"max_response_tokens": 40, "stop": stop, "stop_token_ids": [token]})
    for (free_ids, free_scores, free_reason, _), (ids, scores, reason, found), count in zip(
        free, cut["rollouts"], cut["spans"], strict=True
    ):
        length, expected = len(free_ids), None
        for end in range(1, len(free_ids) + 1):
            text = tokenizer.decode(free_ids[:end], skip_special_tokens=False)
            hit = next((each for each in stop if each in text), None)
            if hit or free_ids[end - 1] == token:
                length, expected = end, hit
                break
        assert (ids, found) == (free_ids[:length], expected)
        assert scores == pytest.approx(free_scores[:length], abs=1e-4) and count == length
        assert reason == ("stop" if expected or ids[-1] == token else free_reason)
        if expected:
            judged = judged_text(tokenizer.decode(ids, skip_special_tokens=True), expected, keep=False)
            assert not any(each in judged for each in stop)
    assert sum(found is not None for _, _, _, found in cut["rollouts"]) > 10
    assert any(ids[-1] == token for ids, *_ in cut["rollouts"])


@pytest.mark.slow
def test_a_response_that_is_heard_is_the_same(tmp_path: Path, model: Path) -> None:
    found = drive(tmp_path, model, "heard", sampling={"max_response_tokens": 100})
    assert "found" in found, found
    assert sum(bool(each) for each in found["heard"]) > 8
    for plain, made, pieces in zip(found["plain"], found["found"], found["heard"], strict=True):
        assert made[0] == plain[0] and made[2:4] == plain[2:4] and made[4] == len(made[0])
        assert made[1] == pytest.approx(plain[1], abs=1e-4)
        assert all(piece == made[0][: len(piece)] and len(piece) < len(made[0]) for piece in pieces)
        assert [len(piece) for piece in pieces] == sorted({len(piece) for piece in pieces})


@pytest.mark.slow
def test_turns_are_sampled_behind_all_tokens_before(tmp_path: Path, model: Path) -> None:
    """Log-probs of each action are those of the whole text; vLLM has all tokens before but the last and those said."""
    vocabulary = AutoTokenizer.from_pretrained(model).get_vocab()
    sampling: dict[str, Any] = {"max_response_tokens": 60, "stop_token_ids": [vocabulary[digit] for digit in "0123456"]}
    task = {"name": "tests.integration.rig.engine_driver:Talking"}
    cache = {"enable_prefix_caching": True, "block_size": 32}
    found = drive(tmp_path, model, "turns", sampling=sampling, environment=task, engine_options=cache)
    assert "rollouts" in found, found
    begins, ends = ([vocabulary[each] for each in text] for text in ("12", "34"))
    counts, stops = [], {*sampling["stop_token_ids"], vocabulary["<eos>"]}
    for number, each in enumerate(found["rollouts"]):
        turns, tokens, mask = each["turns"], each["tokens"], each["mask"]
        response = tokens[40:]
        counts.append(len(turns))
        assert [token for token, chosen in zip(response, mask, strict=True) if chosen] == [
            token for turn in turns for token in turn
        ]
        for one, prompt in zip(turns, each["prompts"], strict=True):
            assert tokens[: len(prompt) + len(one)] == prompt + one
        masked = [token for token, is_action in zip(response, mask, strict=True) if not is_action]
        said = masked[: len(masked) // max(1, len(turns) - 1)]
        assert masked == said * (len(turns) - 1) and vocabulary["<eos>"] not in said
        assert len(turns) == 1 or (said[:2], said[-2:]) == (begins, ends)
        expected = [score if is_action else 0.0 for score, is_action in zip(each["scored"], mask, strict=True)]
        assert each["log_probs"] == pytest.approx(expected, abs=1e-3)
        assert sum(count for _, count in each["spans"]) == len(response)
        assert len(set(each["seeds"])) == len(turns)
        renewed = number % 2 == 0
        assert len(each["spans"]) == (len(turns) if renewed else 1)
        assert each["cached"][1:] == [len(before) - len(said) - 1 for before in each["prompts"][1:]], each["cached"]
        answered = len(turns) - (each["reason"] == "length" and turns[-1][-1] not in stops)
        assert each["reward"] == 0.25 * answered
    assert max(counts) == 3


@pytest.mark.slow  # three starts of vLLM
@pytest.mark.parametrize(
    ("settings", "waits"),
    [
        ({"max_in_flight": 32}, "all"),
        ({"max_in_flight": 4}, "some"),  # fewer places than sessions: who has waited longest goes
        ({"max_in_flight": 32, "kv_cache_gib": 0.0008, "max_model_len": 160}, "some"),  # less memory than they need
    ],
    ids=["room for all", "few places", "little memory"],
)
def test_a_sequence_that_waits_for_its_next_turn_samples_the_same(
    tmp_path: Path, model: Path, settings: dict[str, Any], waits: str
) -> None:
    task = {"name": "tests.integration.rig.engine_driver:Talking"}
    found = drive(tmp_path, model, "kept", environment=task, engine_options={"block_size": 32}, **settings)
    assert "kept" in found, found
    assert found["left"] == [] and found["in flight"] == 0
    pairs = [(a, b) for a, b in zip(found["kept"], found["plain"], strict=True) if a is not None and b is not None]
    assert len(pairs) >= 20 and None in found["kept"]
    same = sum([turn[0] for turn in a] == [turn[0] for turn in b] for a, b in pairs)
    assert same >= 0.9 * len(pairs), same  # rounding may tip a token
    length, went_on = 0, list[bool]()
    for session, plain in pairs:
        length = 40
        for number, (tokens, scores, spans, cached) in enumerate(session):
            assert len(tokens) == len(scores) == sum(count for _, count in spans) > 0
            assert [version for version, _ in spans] == sorted({version for version, _ in spans})
            if tokens == plain[number][0]:
                assert scores == pytest.approx(plain[number][1], abs=1e-3)
            if number:
                went_on.append(cached == length - 6)  # all but the token sampled last and five that were said
            length += len(tokens) + 5
    assert all(went_on) if waits == "all" else any(went_on) and not all(went_on), (
        sum(went_on), len(went_on), found["blocks"], found["preempted"]
    )  # fmt: skip
