"""A generator without a model: leases prompts and appends made-up trajectories, the same for the same prompt."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vcppo.common.records.trajectory import Prompt, Trajectory, VersionSpan
from vcppo.common.records.wire import encode_trajectory
from vcppo.common.store import facts
from vcppo.common.store.ledger import BufferEntry
from vcppo.common.store.run_store import RunStore
from vcppo.common.tasks.chain_arithmetic import ChainArithmetic

VOCABULARY = 41  # as many as chain_arithmetic has symbols


def fabricate(prompt: Prompt, policy_version: int, generator_id: str = "generator-0") -> Trajectory:
    """Random tokens, of mixed versions where it can be; right when the first is even, for a critic to learn."""
    random = np.random.default_rng(prompt.seed)
    length = int(random.integers(4, 17))
    tokens = random.integers(2, VOCABULARY, length).astype(np.int32)
    correct = bool(tokens[0] % 2 == 0)
    old = int(random.integers(1, length))
    spans = (VersionSpan(prompt.issue_version, old), VersionSpan(policy_version, length - old))
    return Trajectory(
        id=f"{prompt.id}@{generator_id}.0",
        prompt_id=prompt.id,
        group_id=prompt.group_id,
        sample_index=prompt.sample_index,
        task=prompt.task,
        prompt_token_ids=prompt.token_ids,
        response_token_ids=tokens,
        action_mask=np.ones(length, np.bool_),
        behaviour_log_probs=np.full(length, -np.log(VOCABULARY), np.float32),
        version_spans=spans if policy_version != prompt.issue_version else (VersionSpan(policy_version, length),),
        finish_reason="stop",
        reward=1.0 if correct else -1.0,
        outcome="correct" if correct else "wrong",
        generator_id=generator_id,
        issue_version=prompt.issue_version,
    )


class ScriptedGenerator(threading.Thread):
    """Answers prompts in random order until stopped; ``allow(prompt)`` False holds a prompt back (its lease stays).

    ``change`` makes another trajectory of the one that `fabricate` gives. ``may_be_late``: prompts held back may be
    given up meanwhile.
    """

    def __init__(
        self,
        url: str,
        run_id: str,
        allow: Callable[[Prompt], bool] = lambda _: True,
        seed: int = 0,
        change: Callable[[Trajectory], Trajectory] = lambda trajectory: trajectory,
        may_be_late: bool = False,
    ) -> None:
        super().__init__(daemon=True)
        self._store = RunStore.connect(url, run_id, 10.0)
        self._allow = allow
        self._change = change
        self._fates = [["accepted"], ["duplicate"]] if may_be_late else [["accepted"]]
        self._random = np.random.default_rng(seed)
        self._ended = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        held: list[Prompt] = []
        try:
            while not self._ended.is_set():
                held += self._store.lease("generator-0", 4, 30.0, wait_seconds=0.05)
                ready = [prompt for prompt in held if self._allow(prompt)]
                if ready:
                    chosen = ready[int(self._random.integers(len(ready)))]
                    held.remove(chosen)
                    self._append(chosen)
        except BaseException as error:  # noqa: BLE001 - shown by the test that stops us
            self.error = error

    def _append(self, prompt: Prompt) -> None:
        version = facts.POLICY_VERSION.read(self._store) or 0
        trajectory = self._change(fabricate(prompt, max(version, prompt.issue_version)))
        assert self._store.append([BufferEntry.of(trajectory, encode_trajectory(trajectory))]) in self._fates

    def stop(self) -> None:
        self._ended.set()
        self.join(10.0)
        assert self.error is None, self.error


def make_tiny_model(folder: Path, hidden_size: int = 32) -> None:
    """A random Qwen2 of 2 layers with chain_arithmetic's tokenizer, tied embeddings; vLLM's CPU attention needs 64."""
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=hidden_size,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer = ChainArithmetic(num_operations=2).tokenizer()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>").save_pretrained(folder)
