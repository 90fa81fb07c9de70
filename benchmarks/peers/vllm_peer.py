"""vLLM alone: `LLM.generate` in a process of its own, told by lines on stdin what to generate.

`python -m benchmarks.peers.vllm_peer` reads JSON lines: the arguments of `LLM`, then what `VllmPeer.generate` asks.
Sampling is as plain as a user's: temperature, seed, length; text is made if there is a tokenizer.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import psutil

from benchmarks import REPOSITORY
from benchmarks.rig.harness import tree_cpu_seconds
from vcppo.common.records.trajectory import Prompt


class Generated(NamedTuple):
    """What one round took, and gave."""

    seconds: float
    num_tokens: int


class VllmPeer:
    """The asking end. Make it, do something else, then `wait_ready`. Use it as a context manager."""

    def __init__(self, arguments: Mapping[str, Any], core: int, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peers.vllm_peer"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {**environment, "VLLM_LOGGING_LEVEL": "ERROR"},
            cwd=REPOSITORY,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
        self._whole = psutil.Process(self._process.pid)
        self._tell(arguments)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(60)

    def wait_ready(self) -> None:
        assert self._hear() == {"ready": True}
        self._signal(signal.SIGSTOP)

    def generate(self, prompts: Sequence[Prompt], *, log_probs: bool = False) -> Generated:
        """All prompts at once. Between calls it is stopped: vLLM's worker process spins when it has nothing to do."""
        self._signal(signal.SIGCONT)
        self._tell(
            {
                "prompts": [prompt.token_ids.tolist() for prompt in prompts],
                "seeds": [prompt.seed for prompt in prompts],
                "max_tokens": prompts[0].max_response_tokens,
                "log_probs": log_probs,
            }
        )
        generated = Generated(**self._hear())
        self._signal(signal.SIGSTOP)
        return generated

    def cpu_seconds(self) -> float:
        """User and system so far, of all its processes."""
        return tree_cpu_seconds(self._whole)

    def move_to(self, core: int) -> None:
        """Pin all its processes, of whatever it has started, to `core`."""
        for process in [self._whole, *self._whole.children(recursive=True)]:
            for thread in process.threads():
                os.sched_setaffinity(thread.id, {core})

    def _signal(self, number: signal.Signals) -> None:
        os.killpg(self._process.pid, number)

    def _tell(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("vLLM's process ended; its error is above")
        found: dict[str, Any] = json.loads(line)
        return found


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what vLLM prints
    from vllm import LLM, SamplingParams

    llm = LLM(**json.loads(sys.stdin.readline()))
    llm.generate([{"prompt_token_ids": [4, 5]}], SamplingParams(max_tokens=2), use_tqdm=False)
    answers.write(json.dumps({"ready": True}) + "\n")
    for line in sys.stdin:
        asked = json.loads(line)
        options = {"logprobs": 0, "flat_logprobs": True, "detokenize": False} if asked["log_probs"] else {}
        params = [
            SamplingParams(temperature=1.0, seed=seed, max_tokens=asked["max_tokens"], **options)
            for seed in asked["seeds"]
        ]
        began = time.perf_counter()
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in asked["prompts"]], params, use_tqdm=False)
        seconds = time.perf_counter() - began
        num_tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
        answers.write(json.dumps({"seconds": seconds, "num_tokens": num_tokens}) + "\n")


if __name__ == "__main__":
    _serve()
