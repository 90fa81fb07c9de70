"""The config loader: a YAML file and overrides, both as somebody broken or hostile would write them.

A case is the file, then after each NUL byte one override.
"""

from __future__ import annotations

import os
from random import Random

from tests.fuzz.rig.harness import ACCEPTED, Harness, scratch
from tests.fuzz.rig.mutate import mutate_bytes
from vcppo.common.config import ConfigError, dump_config, load_config

_FILE = scratch() / "run.yaml"
_MAX_LINES = 60
_MAX_CHARACTERS = 20_000


def one(data: bytes) -> str:
    """A config that dumps and loads as itself, or lines that name file (or command line) and field."""
    text, *overrides = data.split(b"\0")
    _FILE.write_bytes(text)
    try:
        config = load_config(_FILE, [os.fsdecode(override) for override in overrides])
    except ConfigError as error:
        return _reason(error)
    dumped = dump_config(config)
    _FILE.write_text(dumped, encoding="utf-8")
    assert load_config(_FILE) == config, "the dumped config loads as another"
    return ACCEPTED


def _reason(error: ConfigError) -> str:
    text = str(error)
    assert error.exit_code == 2
    assert 1 <= len(error.problems) <= _MAX_LINES, f"{len(error.problems)} lines"
    assert len(text) <= _MAX_CHARACTERS, f"{len(text)} characters: {text[:200]}"
    for line in text.split("\n"):
        assert line.startswith((str(_FILE), "command line")), f"a line of another kind: {line[:200]!r}"
        assert line.isprintable(), f"control characters: {line[:200]!r}"
    first = error.problems[0].removeprefix(str(_FILE)).removeprefix("command line").lstrip(": ")
    return first.split(" = ")[0].split(" (")[0].split(":")[0][:24] or "(empty)"


_PLAIN = """\
run: {name: first}
model: {path: none, dtype: bfloat16}
task: {name: dataset, options: {path: problems.jsonl, question_column: q}}
sampling: {max_response_tokens: 2048, temperature: 1}
generator: {max_model_len: 3072, num_generators: 2, engine_options: {a: [1, 2]}}
learner: {micro_batch_tokens: 16384}
rl: {actor_learning_rate: 3e-5, batch_size: 64, group_size: 1}
transport: {endpoints: ["tcp://127.0.0.1:5755"], max_message_mib: 16}
"""
_SCRATCH = """\
model: &m
  path: none
sft:
  init: scratch
  architecture: {model_type: llama, hidden_size: 64}
  phases:
  - {steps: 10, learning_rate: 1e-3, style: {check: 0.1}}
redis: {url: "redis://127.0.0.1:6379/0"}
"""
_VALUES = (
    *("1", "-1", "0", "089", "0x10", "1_000", "1e999", "-.inf", ".nan", "9" * 400, "9" * 5000, "1e-400", "2**9", "~"),
    *("true", "no", "''", '"\\ud800"', '"\\0"', '"\\x1b[2J"', "[]", "{}", "[[[]]]", "!!int x", "!!float x", "!!bool x"),
    *("!!binary x", "!!binary '*'", "!!timestamp 2001-99-99", "!!timestamp x", "!!set {a}", "!!omap [a: 1]"),
    *("!!python/object/apply:os.system [id]", "!!python/name:os.system", "!x y", "!!str 1", "!!map [1]", "!!seq {}"),
    *("*x", "&x [*x]", "&x {a: *x}", "<<", "{<<: 1}", "{<<: [1]}", "{? [a] : 1}", "{1: 2}", "{a: 1, a: 2}"),
    *("[" * 200 + "]" * 200, "[" * 5000, "{a: " * 900 + "}" * 900, "- " * 3000, "? " * 2000, "|\n  a\n", "'"),
    *("tcp://[::1", "tcp://:0", "redis://[", "http://x", "\t", "\ufeff", "%YAML 9.9", "---", "...", "# x", "x" * 5000),
)  # fmt: skip
_NAMES = (
    *("model", "model.path", "rl.batch_size", "rl.group_size", "generator.max_model_len", "run.name"),
    *("sft.phases.9", "sft.phases.-1", "sft.phases.x", "sft.phases." + "9" * 5000, "redis.url"),
    *("task.options", "task.options.a.b.c", "a." * 3000 + "b", "generator.engine_options.model", "", "a", "=", "µ"),
    *("learner.num_ranks", "rl.max_staleness", "transport.max_message_mib", "eval.k", "\udcff", "model.\x1b[2J"),
    *("critic.init", "algorithm.advantage_estimator", "value_pretraining.num_trajectories", "run.folder", "task.name"),
)  # fmt: skip


def _bomb(rng: Random) -> str:
    """Aliases of aliases: a few lines that mean gigabytes."""
    width, depth = rng.choice((2, 9, 9)), rng.choice((2, 9, 30))
    how = rng.choice(("[{}]", "{{<<: [{}]}}", "{{{}}}"))
    lines = ["a0: &a0 {x: 1}" if "<<" in how else "a0: &a0 [lol, lol]"]
    for level in range(1, depth):
        inner = ", ".join(f"k{i}: *a{level - 1}" if how == "{{{}}}" else f"*a{level - 1}" for i in range(width))
        lines.append(f"a{level}: &a{level} " + how.format(inner))
    target = rng.choice(
        ("task: {{options: *a{}}}", "generator: {{engine_options: {{x: *a{}}}}}", "rl: *a{}", "x: *a{}")
    )
    return "\n".join([*lines, target.format(depth - 1), "model: {path: none}"])


def seeds() -> list[bytes]:
    overrides = [b"rl.batch_size=64", b"run.name=second", b"sampling.temperature=0.7"]
    return [_PLAIN.encode(), _SCRATCH.encode(), b"model: {path: x}", b"\0".join([_PLAIN.encode(), *overrides])]


def draw(rng: Random) -> bytes:
    chance = rng.random()
    if chance < 0.05:
        return _bomb(rng).encode()
    text = rng.choice((_PLAIN, _SCRATCH, "model: {path: none}"))
    if chance < 0.35:
        parts = text.split("\n")
        at = rng.randrange(len(parts))
        name = rng.choice(_NAMES).split(".")[-1]
        parts[at] = rng.choice((f"{name}: ", f"{parts[at].partition(':')[0]}: ", "model: {path: ", "- ")) + rng.choice(
            _VALUES
        )
        data = "\n".join(parts).encode("utf-8", "surrogateescape")
    elif chance < 0.6:
        data = mutate_bytes(rng, text.encode())
    elif chance < 0.62:
        data = b"\n".join(b"k%d: 1" % i for i in range(rng.choice((30, 3000)))) + b"\nmodel: {path: x}"
    else:
        data = text.encode()
    data = data.replace(b"\0", b"")
    for _ in range(rng.choice((0, 0, 1, 2)) if chance < 0.6 else rng.choice((0, 1, 1, 2, 4))):
        override = f"{rng.choice(_NAMES)}={rng.choice(_VALUES)}".encode("utf-8", "surrogateescape")
        data += b"\0" + (mutate_bytes(rng, override) if rng.random() < 0.2 else override)
    return data


HARNESS = Harness("config", one, draw, seeds)
