"""Coverage-guided runs by atheris (libFuzzer), in a child process: libFuzzer ends its own process.

The same `one` as the other drivers; a finding is any exception out of it, kept as a file and run again by ``--case``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random

from tests.fuzz.rig.harness import Harness
from tests.fuzz.rig.mutate import mutate_bytes
from tests.fuzz.targets import load

_MAX_BYTES = 65536
_MEMORY_MIB = 2048
_CASE_SECONDS = 20
_INSTRUMENTED = [
    "vcppo.common",
    "vcppo.learner.engine.checkpoint",
    "vcppo.learner.batching.trajectory_file",
    "vcppo.learner.rl.trained_log",
    "yaml",
    "json",
]


def run_guided(harness: Harness, seconds: int, keep: Path) -> int:
    """Returns 0, or libFuzzer's exit code on a finding. Its progress goes to stderr."""
    keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(harness.seeds()):
            (Path(folder) / f"seed-{number}").write_bytes(data)
        command = [
            *(sys.executable, "-m", "tests.fuzz.guided", harness.name, folder),
            *(f"-max_total_time={seconds}", f"-max_len={_MAX_BYTES}", f"-rss_limit_mb={_MEMORY_MIB}"),
            *(f"-timeout={_CASE_SECONDS}", "-print_final_stats=1", f"-artifact_prefix={keep}/{harness.name}-guided-"),
        ]
        return subprocess.run(command, check=False, env=os.environ | {"PYTHONPATH": os.getcwd()}).returncode


def main() -> None:
    import atheris  # a development tool with wheels for few platforms

    with atheris.instrument_imports(include=[*_INSTRUMENTED, f"tests.fuzz.{sys.argv[1]}"]):
        harness = load(sys.argv[1])

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        """Mostly libFuzzer's own; at times ours, which knows the form: sizes and checksums are not found by chance."""
        rng = Random(seed)
        chance = rng.random()
        if chance < 0.1:
            return harness.draw(rng)[:max_size]
        return mutate_bytes(rng, data)[:max_size] if chance < 0.3 else atheris.Mutate(data, max_size)

    atheris.Setup([sys.argv[0], *sys.argv[2:]], lambda data: harness.one(bytes(data)) and None, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
