"""What the learner's checks share: the model, loaded once, the tokenizer, some real text."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch

from vcppo.common.check.check_lines import NotPossible
from vcppo.common.config import VcppoConfig
from vcppo.common.model_folder.tokenizer import TEXTS
from vcppo.common.tasks import Text, encode_prompt, load_task
from vcppo.common.tasks.asking import problems_of
from vcppo.learner.export import load_tokenizer, make_policy
from vcppo.learner.models.models import PolicyModel

T = TypeVar("T")
NUM_TEXTS = 6
_GIB = 2**30


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
        """Raises what loading raises, and NotPossible the next time."""
        return self._once("the tokenizer", lambda: self._tokenizer)

    @cached_property
    def _policy(self) -> PolicyModel:
        self.need(_weights_bytes(self.config.model.path), "loading the model")
        return make_policy(self.config)

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.config)

    @cached_property
    def texts(self) -> list[str]:
        """Prompts of the task as the model gets them; a general text where the task or its tokenizer can't be had."""
        try:
            problems = problems_of(load_task(self.config.task), "train", 0, 0, NUM_TEXTS)
            return [self._text(problem.prompt) for problem in problems] or list(TEXTS)
        except Exception:  # noqa: BLE001  (the task's and the prompts' own checks say what is wrong with them)
            return list(TEXTS)

    def _text(self, prompt: Text) -> str:
        ids = encode_prompt(self.tokenizer, prompt)
        return str(self.tokenizer.decode(ids.tolist(), skip_special_tokens=False))

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
    """Of all parameters in their own types; buffers are left out."""
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def _weights_bytes(path: str) -> int:
    return sum(file.stat().st_size for file in Path(path).expanduser().glob("*.safetensors"))
