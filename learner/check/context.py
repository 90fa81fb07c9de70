"""What the learner's checks share: the model, loaded once, the tokenizer, some real text."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from common.check_lines import NotPossible
from common.config import VcppoConfig
from common.errors import VcppoError
from common.tasks import encode_prompt, load_task
from common.trajectory import Int32Array, Trajectory
from learner.demonstrations import as_trajectory
from learner.export import load_tokenizer, make_policy
from learner.models import PolicyModel

T = TypeVar("T")
NUM_TEXTS = 4
_GIB = 2**30
_MAX_TEXT_TOKENS = 96


class Context:
    """Made at the start; a model that did not load is not tried twice."""

    def __init__(self, config: VcppoConfig) -> None:
        self.config = config
        self._failed: set[str] = set()

    @property
    def policy(self) -> PolicyModel:
        """The policy, in ``model.dtype``, on the CPU. Raises what loading raises, and NotPossible the next time."""
        return self._once("the model", lambda: self._policy)

    @property
    def tokenizer(self) -> Any:
        return self._once("the tokenizer", lambda: self._tokenizer)

    @cached_property
    def _policy(self) -> PolicyModel:
        self.need(_weights_bytes(self.config.model.path), "loading the model")
        return make_policy(self.config)

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.config)

    @cached_property
    def texts(self) -> list[tuple[Int32Array, Int32Array]]:
        """Prompts of the task and something like a response to each, as tokens.

        Raises NotPossible when the task or the tokenizer can't be had; their own checks say why.
        """
        try:
            problems = load_task(self.config.task).problems("train", 0, 0, NUM_TEXTS)
            tokenizer = self.tokenizer
        except VcppoError as error:
            raise NotPossible("no real text: the task or the tokenizer can't be loaded, see there") from error
        found = []
        for problem in problems:
            response = " ".join(str(value) for value in problem.answer.values())
            text = f"Let me think step by step. The answer is {response}."
            ids = np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)
            found.append((encode_prompt(tokenizer, problem.prompt)[:_MAX_TEXT_TOKENS], ids[:_MAX_TEXT_TOKENS]))
        return found

    def trajectories(self) -> list[Trajectory]:
        """`texts`, as what packing takes."""
        return [as_trajectory(prompt, response) for prompt, response in self.texts if len(prompt) and len(response)]

    def need(self, num_bytes: int, what: str) -> None:
        """Raises NotPossible when so much memory is not free."""
        free = free_memory()
        if num_bytes > free:
            raise NotPossible(f"{what} takes {num_bytes / _GIB:.1f} GiB of memory, {free / _GIB:.1f} are free")

    def _once(self, what: str, make: Callable[[], T]) -> T:
        if what in self._failed:
            raise NotPossible(f"{what} can't be loaded, see above")
        try:
            return make()
        except NotPossible:
            raise
        except Exception:
            self._failed.add(what)
            raise


def free_memory() -> int:
    """Bytes of this machine nobody uses; 2**62 where the system does not say."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return int(found[1]) * 1024 if found else 2**62


def num_bytes(module: torch.nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def _weights_bytes(path: str) -> int:
    return sum(file.stat().st_size for file in Path(path).expanduser().glob("*.safetensors"))
