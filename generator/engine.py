"""The generator's one door to vLLM: `Engine` wraps `AsyncLLM`; `register` is the plugin vLLM calls.

Token ids go in and out; text is the caller's business. Weight versions are vLLM's own labels, so the
spans of a rollout say which weights sampled which token even when an update fell into its middle.

Prefix cache: cached blocks are valid for one set of weights only, but vLLM can drop them only by
recomputing every sequence in flight. So each request's cache is salted with the policy version it was
submitted under: after an update no new request finds an old block, and sequences in flight keep theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog

from common.config import VcppoConfig
from common.errors import VcppoError
from common.trajectory import FinishReason, Float32Array, Int32Array, Prompt, VersionSpan
from generator.model_files import end_tokens, require_model

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

log = structlog.get_logger(__name__)

OWNER_VARIABLE = "VCPPO_ENGINE_OWNER"
_PR_SET_PDEATHSIG = 1


class EngineError(VcppoError):
    """vLLM could not start or died; the text says with which model and why."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """What the engine made of one prompt.

    Attributes:
        token_ids: ``[T]`` int32, EOS included when it was sampled.
        log_probs: ``[T]`` float32, nats, of the distribution sampled from (after temperature, top-p, top-k).
        version_spans: run-length policy versions; counts sum to T.
        finish_reason: ``stop``, ``length`` or ``abort``.
        seconds: from submission to the last token.
    """

    token_ids: Int32Array
    log_probs: Float32Array
    version_spans: tuple[VersionSpan, ...]
    finish_reason: FinishReason
    seconds: float


def register() -> None:
    """Entry point ``vllm.general_plugins``: runs in every process vLLM starts; idempotent."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if "gloo" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine("gloo", "generator.gloo_engine", "GlooWeightTransferEngine")
    owner = os.environ.get(OWNER_VARIABLE)
    if owner is not None and int(owner) != os.getpid():
        _die_with_parent()


def _die_with_parent() -> None:
    """Ask Linux to kill this child when its parent dies: a SIGKILLed generator must not leave its engine running."""
    with contextlib.suppress(OSError, AttributeError):  # not Linux: vLLM's own pipes still end it, later
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Engine:
    """AsyncLLM with the calls a generator needs. Make it, `await start()`, and `shutdown()` at the end."""

    def __init__(self, config: VcppoConfig, *, model: str | None = None, seed: int = 0) -> None:
        self.config = config
        self.model = model or config.model.path
        self.policy_version = 0
        self._seed = seed
        self._llm: AsyncLLM | None = None
        self._requests: set[str] = set()
        self._counter = 0
        self._stop_tokens: list[int] = []

    async def start(self) -> None:
        """Bring vLLM up (half a minute or more). Raises EngineError; the engine's versions start at 0."""
        require_model(self.model)
        _set_environment(self.config)
        began = time.monotonic()
        try:
            self._stop_tokens = end_tokens(self.model)
            from vllm import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM

            register()
            arguments = self._arguments()
            self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
        except VcppoError:
            raise
        except Exception as error:  # vLLM raises many kinds here; each ends the start
            raise EngineError(f"vLLM could not start with model {self.model}: {error}") from error
        await self.set_version(0)
        await self._warm_up()
        log.info("engine_ready", model=self.model, seconds=round(time.monotonic() - began, 1))

    async def _warm_up(self) -> None:
        """Sample and score once: vLLM compiles on first use, which must not happen while the learner waits."""
        tokens = np.asarray([self._stop_tokens[0]] * 2, dtype=np.int32)
        await self.generate(Prompt("warm-up", "", 0, "", tokens, {}, 0, 0, "rl", 2))
        await self.canary(tokens, 1)

    def _arguments(self) -> dict[str, Any]:
        generator = self.config.generator
        dtype = self.config.model.dtype if generator.dtype == "auto" else generator.dtype
        arguments: dict[str, Any] = {
            "model": self.model,
            "skip_tokenizer_init": True,
            "trust_remote_code": self.config.model.trust_remote_code,
            "dtype": dtype,
            "seed": self._seed,
            "max_model_len": generator.max_model_len,
            "max_num_seqs": generator.max_in_flight + 1,  # one place for the canary
            "tensor_parallel_size": generator.tensor_parallel_size,
            "enforce_eager": generator.enforce_eager,
            "logprobs_mode": "processed_logprobs",
            "disable_log_stats": True,
            "weight_transfer_config": {"backend": transfer_backend(self.config)},
        }
        if on_cpu():
            arguments["kv_cache_memory_bytes"] = int(generator.kv_cache_gib * 2**30)
        else:
            arguments["gpu_memory_utilization"] = generator.gpu_memory_utilization
        return arguments | dict(generator.engine_options)

    @property
    def llm(self) -> AsyncLLM:
        if self._llm is None:
            raise EngineError("the vLLM engine is not running")
        return self._llm

    @property
    def num_in_flight(self) -> int:
        return len(self._requests)

    @property
    def is_dead(self) -> bool:
        return self._llm is not None and self._llm.errored

    # Generation

    async def generate(self, prompt: Prompt, *, seed: int | None = None) -> Rollout:
        """Sample one response. The seed is the prompt's, unless given. Raises EngineError when vLLM refuses or died."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = self.config.sampling
        params = SamplingParams(
            max_tokens=prompt.max_response_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=prompt.seed if seed is None else seed,
            stop_token_ids=self._stop_tokens,
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        began = time.monotonic()
        output = await self._run(prompt.token_ids, params, prompt.id, salt=f"v{self.policy_version}")
        return _rollout(output.outputs[0], time.monotonic() - began)

    async def canary(self, token_ids: Int32Array, prompt_length: int) -> Float32Array:
        """Log-probs ``[T]`` of ``token_ids[prompt_length:]`` under the current weights, at the sampling temperature.

        At temperature 1 one request scores them all; else each goes through the sampler itself, so that a
        wrong temperature shows. Top-p and top-k are left out: they would hide tokens.
        """
        ids = [int(t) for t in token_ids]
        if self.config.sampling.temperature == 1.0:
            return await self._canary_prompt(ids, prompt_length)
        positions = range(prompt_length, len(ids))
        scores = await asyncio.gather(*(self._canary_sampler(ids[:i], ids[i]) for i in positions))
        return np.asarray(scores, dtype=np.float32)

    async def _canary_prompt(self, ids: list[int], prompt_length: int) -> Float32Array:
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, temperature=1.0, prompt_logprobs=0, detokenize=False)
        output = await self._run(ids, params, "canary", salt=f"canary{self._counter}")
        found = output.prompt_logprobs
        return np.asarray([found[i][ids[i]].logprob for i in range(prompt_length, len(ids))], dtype=np.float32)

    async def _canary_sampler(self, prefix: list[int], token: int) -> float:
        from vllm import SamplingParams

        params = SamplingParams(
            max_tokens=1, temperature=self.config.sampling.temperature, logprob_token_ids=[token], detokenize=False
        )
        output = await self._run(prefix, params, "canary", salt=f"canary{self._counter}")
        return float(output.outputs[0].logprobs[0][token].logprob)

    async def _run(self, token_ids: Int32Array | Sequence[int], params: Any, name: str, salt: str) -> Any:
        self._counter += 1
        request_id = f"{name}#{self._counter}"
        # vLLM takes a Python list here; this is its interface, the wire form stays an array.
        ids = token_ids.tolist() if isinstance(token_ids, np.ndarray) else token_ids
        prompt: Any = {"prompt_token_ids": ids, "cache_salt": salt}
        final = None
        self._requests.add(request_id)
        try:
            async for output in self.llm.generate(prompt, params, request_id):
                final = output
        except ValueError as error:
            raise EngineError(f"vLLM refuses {name}: {error}") from error
        except Exception as error:
            if self.is_dead:
                raise EngineError(f"vLLM's engine died: {error}") from error
            raise
        finally:
            self._requests.discard(request_id)
        if final is None:
            raise EngineError(f"vLLM returned nothing for {name}")
        return final

    async def abort_all(self) -> None:
        """End every request in flight; their rollouts come back with finish reason ``abort``."""
        await self.llm.abort(list(self._requests), internal=False)

    # Weights

    async def pause(self) -> None:
        """Freeze generation, sequences in flight kept; returns when no step is running.

        What `AsyncLLM.pause_generation` does, without its 20 ms of sleep for outputs still on their way to callers:
        each output carries the version of the weights that made it, so they may come later.
        """
        await self.llm.engine_core.pause_scheduler_async(mode="keep", clear_cache=False)

    async def resume(self) -> None:
        await self.llm.resume_generation()

    async def is_paused(self) -> bool:
        return bool(await self.llm.is_paused())

    async def init_weight_transfer(self, init_info: dict[str, Any]) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        await self.llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=init_info))

    async def start_weight_update(self) -> None:
        await self.llm.start_weight_update()

    async def update_weights(self, update_info: dict[str, Any]) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        await self.llm.update_weights(WeightTransferUpdateRequest(update_info=update_info))

    async def finish_weight_update(self, policy_version: int) -> None:
        """Finalise the reload: tokens sampled from now on carry ``policy_version``; prefixes cached before are dead."""
        await self.llm.finish_weight_update(weight_version=str(policy_version))
        self.policy_version = policy_version

    async def set_version(self, policy_version: int) -> None:
        await self.llm.update_weight_version(str(policy_version))
        self.policy_version = policy_version

    async def shutdown_weight_transfer(self) -> None:
        await self.llm.shutdown_weight_transfer_engine()

    def shutdown(self) -> None:
        """Stop vLLM and its processes. Safe to call twice."""
        if self._llm is not None:
            self._llm.shutdown()
            self._llm = None


def _rollout(completion: Any, seconds: float) -> Rollout:
    spans = tuple(VersionSpan(int(s.version), s.end - s.start) for s in completion.weight_versions or ())
    reason: FinishReason = completion.finish_reason if completion.finish_reason in ("stop", "length") else "abort"
    return Rollout(
        token_ids=np.asarray(completion.token_ids, dtype=np.int32),
        log_probs=np.asarray(completion.logprobs.logprobs if completion.logprobs else (), dtype=np.float32),
        version_spans=spans,
        finish_reason=reason,
        seconds=seconds,
    )


def on_cpu() -> bool:
    """Whether vLLM runs on its CPU platform here."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def transfer_backend(config: VcppoConfig) -> str:
    """``broadcast.backend`` with ``auto`` resolved for this machine."""
    if config.broadcast.backend != "auto":
        return config.broadcast.backend
    return "gloo" if on_cpu() else "nccl"


def _set_environment(config: VcppoConfig) -> None:
    """vLLM's switches that are environment variables; what the user set stays."""
    defaults = {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # cores are the launcher's to give (taskset)
        "OMP_NUM_THREADS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "TOKENIZERS_PARALLELISM": "false",
        # glibc's malloc in the engine's process asks for 2 MiB pages: an update allocates each layer anew, twice, and
        # with 4 KiB pages the kernel's page faults took as long as receiving and loading.
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    }
    if config.generator.enforce_eager:
        defaults["TORCHDYNAMO_DISABLE"] = "1"  # else the sampler still compiles a few lines for ten seconds
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    os.environ[OWNER_VARIABLE] = str(os.getpid())
