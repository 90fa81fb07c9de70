"""The generator's one door to vLLM: `Engine` wraps `LLMEngine`; `register` is the plugin vLLM calls.

Token ids go in and out; text is the caller's business. Weight versions are vLLM's own labels, so the
spans of a rollout say which weights sampled which token even when an update fell into its middle.

The engine steps in a thread (`vcppo.generator.vllm_engine.stepper`). On a CPU its core is in this process too: in one
of its own, as `AsyncLLM` would have it, every token and its log-prob crosses a socket, which costs a fifth of the
core's time, and all imports are made twice. On CUDA the core has its own process, vLLM's default
(``VLLM_ENABLE_V1_MULTIPROCESSING``).

Prefix cache: cached blocks are valid for one set of weights only, but vLLM can drop them only by
recomputing every sequence in flight. So each request's cache is salted with the policy version it was
submitted under: after an update no new request finds an old block, and sequences in flight keep theirs. So do those
that wait for their environment (`vcppo.generator.vllm_engine.kept_turns`).
"""

from __future__ import annotations

import asyncio
import importlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import structlog

from vcppo.common.config import VcppoConfig
from vcppo.common.errors import VcppoError
from vcppo.common.evaluation.evaluation_inputs import with_evaluation_sampling
from vcppo.common.process.quick_start import take_up_collections
from vcppo.common.records.trajectory import FinishReason, Float32Array, Int32Array, Prompt, VersionSpan
from vcppo.common.tasks import task_class
from vcppo.generator.vllm_engine import seeded_prefill, seeded_turns
from vcppo.generator.vllm_engine.end_tokens import end_tokens, load_tokenizer, require_model
from vcppo.generator.vllm_engine.engine_start import (
    OWNER_VARIABLE,
    die_with_parent,
    log_room,
    set_environment,
    start_failure,
)
from vcppo.generator.vllm_engine.kept_turns import KeptTurns, Turns, may_keep, resumable
from vcppo.generator.vllm_engine.received_weights import SumsReport
from vcppo.generator.vllm_engine.served import require_served
from vcppo.generator.vllm_engine.stepper import EngineDead, Hear, Stepper
from vcppo.generator.vllm_engine.stop_strings import StopStrings, watch

log = structlog.get_logger(__name__)

_USUAL_BATCH = 2048  # tokens a step, vLLM's least default
EXTENSION_VARIABLE = "VCPPO_WORKER_EXTENSION"  # the user's own worker_extension_cls: ours builds on it
UNSYNCED = -1  # the policy version of weights that are not the learner's
_TURN_BLOCK = 32
"""Tokens of a block of the prefix cache where turns follow turns. Only whole blocks are found again, and vLLM's own on
the CPU has 128: of a session of 400 tokens a third was computed anew. It takes no smaller one there."""
_UNSET_FORMAT = "vcppo_unset"
_WORKER_BACKENDS = {"gloo": "gloo", "nccl": "vcppo_nccl"}


class EngineError(VcppoError):
    """vLLM could not start or died; the text says with which model and why."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """What the engine made of one prompt.

    Attributes:
        token_ids: ``[T]`` int32, with the token that ended it: an end token, or the one that completed a stop string.
        log_probs: ``[T]`` float32, nats, of the distribution sampled from (after temperature, top-p, top-k).
        version_spans: run-length policy versions; counts sum to T.
        finish_reason: ``stop``, ``length`` or ``abort``.
        seconds: from submission to the last token.
        stop_string: which of ``sampling.stop`` ended it; None when none did.
        end_ids: the end token that ended it, if one did: it is no part of the text.
        num_cached: prompt tokens that the prefix cache held.
    """

    token_ids: Int32Array
    log_probs: Float32Array
    version_spans: tuple[VersionSpan, ...]
    finish_reason: FinishReason
    seconds: float
    stop_string: str | None = None
    end_ids: tuple[int, ...] = ()
    num_cached: int = 0


def register() -> None:
    """Entry point ``vllm.general_plugins``: runs in every process vLLM starts; idempotent."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if "gloo" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(
            "gloo", "vcppo.generator.vllm_engine.gloo_engine", "GlooWeightTransferEngine"
        )
        WeightTransferEngineFactory.register_engine(
            "vcppo_nccl", "vcppo.generator.vllm_engine.nccl_engine", "SummingNcclEngine"
        )
    importlib.import_module("vcppo.generator.vllm_engine.unset_weights")  # registers its load format
    if on_cpu():
        from vllm.v1.worker.cpu_model_runner import CPUModelRunner

        seeded_prefill.correct(CPUModelRunner)
        seeded_turns.correct(CPUModelRunner)
    _ask_for_amx()
    owner = os.environ.get(OWNER_VARIABLE)
    if owner is not None and int(owner) != os.getpid():
        die_with_parent()


def _ask_for_amx() -> None:
    """Linux lets a process use AMX's tiles once it has asked; before, they are an illegal instruction.

    vLLM 0.32's attention for bfloat16 takes them for granted where the CPU has them, and lives by some product of
    oneDNN's, which does ask, coming first.
    """
    import torch

    if torch.cpu._is_amx_tile_supported():
        torch.cpu._init_amx()


class Engine:
    """vLLM with the calls a generator needs. Make it, `await start()`, and `shutdown()` at the end."""

    def __init__(
        self, config: VcppoConfig, *, model: str | None = None, seed: int = 0, start_unset: bool = False
    ) -> None:
        """`start_unset`: no weights are read; the engine has visibly wrong ones until its first update."""
        self.config = config
        self._evaluation_sampling = with_evaluation_sampling(config).sampling
        self.model = model or config.model.path
        self.policy_version = UNSYNCED if start_unset else 0
        self.start_unset = start_unset
        self._seed = seed
        self._stepper: Stepper | None = None
        self._kept = KeptTurns(0, 1, 0)
        self._counter = 0
        self._is_updating = False
        self._stop_tokens: list[int] = []
        self._tokenizer: Any = None  # only with stop strings: text is otherwise the caller's business
        self._vocabulary = 0

    async def start(self) -> None:
        """Bring vLLM up (ten seconds or more). Raises EngineError; versions start at 0, or -1 (`start_unset`)."""
        require_model(self.model)
        began = time.monotonic()
        self._stepper = Stepper()
        try:
            await self._stepper.start(self._make)
        except VcppoError:
            raise
        except Exception as error:  # vLLM raises many kinds here; each ends the start
            raise EngineError(start_failure(self.config, self.model, error)) from error
        await self.set_version(self.policy_version)
        await self._warm_up()
        log.info("engine_ready", model=self.model, seconds=round(time.monotonic() - began, 1))

    def _make(self) -> Any:
        """vLLM's engine; in its thread."""
        set_environment(self.config)
        sampling, trusted = self.config.sampling, self.config.model.trust_remote_code
        self._stop_tokens = sorted({*end_tokens(self.model, trusted), *sampling.stop_token_ids})
        if sampling.stop:
            self._tokenizer = load_tokenizer(self.model, trusted)
        require_served(self.model, trusted, dict(self.config.generator.engine_options))
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        if on_cpu():
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        register()
        take_up_collections()
        engine = LLMEngine.from_engine_args(EngineArgs(**self._arguments()))
        self._vocabulary = int(engine.model_config.get_vocab_size())
        self._check_stop_tokens()
        self._kept = self._new_kept(engine.vllm_config)
        log_room(self.config, engine.vllm_config.cache_config)
        return engine

    def _new_kept(self, vllm_config: Any) -> KeptTurns:
        cache = vllm_config.cache_config
        blocks = cache.num_gpu_blocks if self._keeps and may_keep(vllm_config) else 0
        return KeptTurns(blocks, cache.block_size or 1, vllm_config.scheduler_config.max_num_seqs)

    def _check_stop_tokens(self) -> None:
        """EngineError here, once, and not at every request."""
        beyond = [token for token in self._stop_tokens if token >= self._vocabulary]
        if beyond:
            own = set(beyond) & set(self.config.sampling.stop_token_ids)
            where = "sampling.stop_token_ids" if own else f"model.path: the end tokens that {self.model} names"
            raise EngineError(
                f"{where}: {sorted(own or beyond)} are beyond the model's vocabulary of {self._vocabulary} tokens:"
                " take out what is no token of this model"
            )

    async def _warm_up(self) -> None:
        """Sample and score once: vLLM compiles on first use, which must not happen while the learner waits."""
        tokens = np.zeros(2, dtype=np.int32)  # a token that every vocabulary has
        await self.generate(Prompt("warm-up", "", 0, "", tokens, {}, 0, 0, "rl", 2))
        await self.canary(tokens, 1)
        if self.config.sampling.temperature != 1.0:
            await self.canary_sampled(tokens, 1)

    def _arguments(self) -> dict[str, Any]:
        generator = self.config.generator
        dtype = self.config.model.dtype if generator.dtype == "auto" else generator.dtype
        arguments: dict[str, Any] = {
            "model": self.model,
            "skip_tokenizer_init": True,
            "use_tqdm_on_load": False,  # standard error is for lines
            "trust_remote_code": self.config.model.trust_remote_code,
            "dtype": dtype,
            "seed": self._seed,
            "max_model_len": generator.max_model_len,
            "max_num_seqs": self._max_sequences,
            "tensor_parallel_size": generator.tensor_parallel_size,
            "enforce_eager": generator.enforce_eager,
            "logprobs_mode": "processed_logprobs",
            "generation_config": "vllm",  # "auto" takes sampling defaults from the model folder
            "disable_log_stats": True,
            "weight_transfer_config": {"backend": _WORKER_BACKENDS[transfer_backend(self.config)]},
        }
        if self._max_sequences > _USUAL_BATCH:  # vLLM wants a token a sequence in each step
            arguments["max_num_batched_tokens"] = self._max_sequences
        if on_cpu():
            arguments["kv_cache_memory_bytes"] = int(generator.kv_cache_gib * 2**30)
            if self._has_turns:
                arguments["block_size"] = _TURN_BLOCK
        else:
            arguments["gpu_memory_utilization"] = generator.gpu_memory_utilization
        arguments |= dict(generator.engine_options)
        if self.start_unset:
            arguments["load_format"] = _UNSET_FORMAT
        os.environ[EXTENSION_VARIABLE] = str(arguments.get("worker_extension_cls", ""))
        return arguments | {"worker_extension_cls": "vcppo.generator.vllm_engine.worker_extension.WorkerExtension"}

    @property
    def _has_turns(self) -> bool:
        return task_class(self.config.task.name).is_environment

    @property
    def _keeps(self) -> bool:
        """Whether sequences may wait between turns. On a CUDA device none does: the blocks of its prefix cache are
        small, and it was never tried there. Nor with stop strings, which vLLM's core does not know: it would go on
        behind them."""
        return on_cpu() and self._has_turns and not self.config.sampling.stop

    @property
    def _max_sequences(self) -> int:
        """A generator has twice as many rollouts as places: that many sequences may wait beside those in flight."""
        generator = self.config.generator
        may_wait = self._keeps and "max_num_batched_tokens" not in generator.engine_options
        return generator.max_sequences + (generator.max_in_flight if may_wait else 0)

    @property
    def stepper(self) -> Stepper:
        """The thread that steps vLLM. Raises EngineError before `start` and after the engine was stopped."""
        if self._stepper is None:
            raise EngineError("the vLLM engine is not running")
        return self._stepper

    @property
    def vocabulary(self) -> int:
        """How many tokens the model has; 0 before `start`."""
        return self._vocabulary

    @property
    def backend(self) -> str:
        """What weights come by: ``gloo`` or ``nccl``."""
        return transfer_backend(self.config)

    @property
    def num_in_flight(self) -> int:
        """Requests inside vLLM now, canaries included."""
        return len(self._kept.in_flight)

    @property
    def is_dead(self) -> bool:
        """Whether a step failed: this process can't generate any more."""
        return self._stepper is not None and self._stepper.is_dead

    # Generation

    @contextmanager
    def turns(self) -> Iterator[Turns]:
        """The turns of one rollout, for `generate`. Between them its sequence may stay in vLLM; at the end it goes."""
        turns = Turns()
        try:
            yield turns
        finally:
            self._let_go(turns)

    async def generate(
        self,
        prompt: Prompt,
        hear: Hear | None = None,
        *,
        seed: int | None = None,
        num_begun: int = 0,
        turns: Turns | None = None,
    ) -> Rollout:
        """Sample one response. The seed is the prompt's, unless given. Raises EngineError when vLLM refuses or died.

        Args:
            hear: called with all tokens so far, now and then; the rollout is the same.
            num_begun: the prompt ends with so many tokens of a response that is to be continued.
            turns: the response is one turn of these.
        """
        params = self._sampling_params(prompt, prompt.seed if seed is None else seed)
        if hear is not None:
            params.output_kind = type(params.output_kind).CUMULATIVE
        began = time.monotonic()
        begun = prompt.token_ids[len(prompt.token_ids) - num_begun :].tolist()
        watch_text = partial(self._watch_text, begun)
        salt = f"v{self.policy_version}"
        if turns is not None and self._goes_on(turns, prompt, hear):
            return await self._next_turn(turns, prompt, params, salt)
        output = await self._run(prompt.token_ids, params, prompt.id, salt, watch_text, hear)
        return _rollout(output, time.monotonic() - began)

    def _goes_on(self, turns: Turns, prompt: Prompt, hear: Hear | None) -> bool:
        """Whether this may be one turn of several in one request. What was kept and doesn't fit to it is let go.

        One that is heard is not: vLLM would give all turns so far each time.
        """
        self._kept.take(turns)
        may_go_on = hear is None and self._kept.fits(len(prompt.token_ids) + prompt.max_response_tokens)
        if not may_go_on or not turns.begins(prompt.token_ids.tolist()):
            self._let_go(turns)
        return may_go_on

    async def _next_turn(self, turns: Turns, prompt: Prompt, params: Any, salt: str) -> Rollout:
        """The turn behind all tokens of the prompt, of which vLLM has those of `turns`, but for the last."""
        began, ids = time.monotonic(), prompt.token_ids.tolist()
        known, before = max(0, len(turns.token_ids) - 1), turns.num_sampled
        try:
            output = await self._run(ids[known:], params, prompt.id, salt, turns=turns, num_known=known)
        except BaseException:  # a cancelled one too
            self._let_go(turns)
            raise
        made = _rollout(output, time.monotonic() - began, before)
        if known:
            made = replace(made, num_cached=known)
        turns.token_ids, turns.num_sampled = ids + made.token_ids.tolist(), before + len(made.token_ids)
        if made.finish_reason == "abort":
            self._let_go(turns)
        else:
            self._make_room(self._kept.keep(turns))
        return made

    def _let_go(self, turns: Turns) -> None:
        """Its sequence ends, if vLLM has one."""
        self._kept.take(turns)
        self._make_room([turns])

    def _make_room(self, gone: Sequence[Turns]) -> None:
        for turns in gone:
            if turns.request_id and self._stepper is not None:
                self._stepper.abort(turns.request_id)
            turns.clear()

    def _sampling_params(self, prompt: Prompt, seed: int) -> Any:
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        evaluates = prompt.purpose == "evaluation"
        sampling = self._evaluation_sampling if evaluates else self.config.sampling
        try:
            return SamplingParams(
                max_tokens=prompt.max_response_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                seed=seed,
                stop_token_ids=self._stop_tokens,
                logprobs=0,
                flat_logprobs=True,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
        except Exception as error:  # as in `_run`
            raise EngineError(f"vLLM refuses {prompt.id}: {error}") from error

    def _watch_text(self, begun: Sequence[int], engine: Any, request_id: str) -> None:
        """Let a request end at ``sampling.stop``; before its first step. `begun`: the response's tokens before it."""
        if stop := self.config.sampling.stop:
            watch(engine, request_id, StopStrings(self._tokenizer, stop, begun))

    async def canary(self, token_ids: Int32Array, prompt_length: int) -> Float32Array:
        """Log-probs ``[T]`` of ``token_ids[prompt_length:]`` under the current weights, at temperature 1.

        One request scores them all. Raises EngineError when vLLM refuses the tokens or died.
        """
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        ids = [int(t) for t in token_ids]
        params = SamplingParams(
            max_tokens=1,
            temperature=1.0,
            prompt_logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        output = await self._run(ids, params, "canary", salt=f"canary{self._counter}")
        found = output.prompt_logprobs
        return np.asarray([found[i][ids[i]].logprob for i in range(prompt_length, len(ids))], dtype=np.float32)

    async def canary_sampled(self, token_ids: Int32Array, prompt_length: int) -> Float32Array:
        """``[T]`` as `canary`, but each token goes through the sampler, at the sampling temperature.

        So a wrong temperature shows. Top-p and top-k are left out: they would hide tokens.
        """
        ids = [int(t) for t in token_ids]
        positions = range(prompt_length, len(ids))
        scores = await asyncio.gather(*(self._canary_sampler(ids[:i], ids[i]) for i in positions))
        return np.asarray(scores, dtype=np.float32)

    async def _canary_sampler(self, prefix: list[int], token: int) -> float:
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        params = SamplingParams(
            max_tokens=1,
            temperature=self.config.sampling.temperature,
            logprob_token_ids=[token],
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        output = await self._run(prefix, params, "canary", salt=f"canary{self._counter}")
        return float(output.outputs[0].logprobs[0][token].logprob)

    async def _run(
        self,
        token_ids: Int32Array | Sequence[int],
        params: Any,
        name: str,
        salt: str,
        prepare: Callable[[Any, str], None] | None = None,
        hear: Hear | None = None,
        turns: Turns | None = None,
        num_known: int = 0,
    ) -> Any:
        self._check_tokens(token_ids, name)
        self._counter += 1
        request_id = f"{name}#{self._counter}"
        # vLLM takes a Python list here; this is its interface, the wire form stays an array.
        ids = token_ids.tolist() if isinstance(token_ids, np.ndarray) else token_ids
        prompt: Any = {"prompt_token_ids": ids, "cache_salt": salt}
        add = None
        if turns is not None:
            request_id, add, prepare = resumable(turns, request_id, prompt, params)
        self._make_room(self._kept.begin(request_id, num_known + len(ids) + params.max_tokens))
        try:
            return await self.stepper.generate(request_id, prompt, params, prepare, hear, add)
        except EngineDead as error:
            raise EngineError(f"vLLM's engine died: {error}") from error
        except Exception as error:  # many kinds: vLLM's own validation errors are no ValueErrors
            raise EngineError(f"vLLM refuses {name}: {error}") from error
        finally:
            self._kept.end(request_id)

    def _check_tokens(self, token_ids: Int32Array | Sequence[int], name: str) -> None:
        """vLLM checks them by a tokenizer, which it does not have; one beyond its embedding would end the engine."""
        ids = np.asarray(token_ids, dtype=np.int64)
        if not len(ids):
            raise EngineError(f"{name}: it has no tokens")
        if ids.min() < 0 or ids.max() >= self._vocabulary:
            wrong = int(ids[(ids < 0) | (ids >= self._vocabulary)][0])
            raise EngineError(f"{name}: token {wrong} is not one of the model's {self._vocabulary}")

    # Weights

    async def pause(self) -> None:
        """Freeze generation, sequences in flight kept; returns when no step is running."""
        stepper = self.stepper

        def pause(engine: Any) -> None:
            stepper.paused = True
            engine.sleep(level=0, mode="keep")  # level 0: only its scheduler

        await stepper.call(pause)

    async def resume(self) -> None:
        """Go on after `pause`: the sequences in flight continue where they were."""
        stepper = self.stepper

        def resume(engine: Any) -> None:
            engine.wake_up(["scheduling"])
            stepper.paused = False

        await stepper.call(resume)

    async def init_weight_transfer(self, init_info: dict[str, Any]) -> None:
        """Make all workers join the learner's group; `init_info` is the learner's, see its trainer."""
        await self._on_workers("init_weight_transfer_engine", init_info=init_info)

    async def start_weight_update(self) -> None:
        """Begin an update, also after one whose learner died in the middle: vLLM wants that one finished first."""
        if self._is_updating:
            await self._on_workers("finish_weight_update")  # half-loaded, and no matter: all of it is loaded anew now
        await self._on_workers("start_weight_update")
        self._is_updating = True

    async def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive the tensors that `update_info` lists into all workers; the learner sends at the same time.

        When it fails vLLM has ended the update.
        """
        try:
            await self._on_workers("update_weights", update_info=update_info)
        except Exception:
            self._is_updating = False  # vLLM has ended it
            raise

    async def finish_weight_update(self, policy_version: int) -> list[SumsReport | None]:
        """Finalise the reload: tokens sampled from now on carry ``policy_version``; prefixes cached before are dead.

        Returns:
            Sums of what each worker received.
        """
        await self._on_workers("finish_weight_update")
        self._is_updating = False
        await self.set_version(policy_version)
        return await self._on_workers("received_weight_sums")

    async def set_version(self, policy_version: int) -> None:
        """Tokens sampled from now on carry this version."""
        await self.stepper.call(lambda engine: engine.set_weight_version(str(policy_version)))
        self.policy_version = policy_version

    async def shutdown_weight_transfer(self) -> None:
        """Leave the learner's group."""
        await self._on_workers("shutdown_weight_transfer_engine")

    async def _on_workers(self, method: str, **arguments: Any) -> list[Any]:
        results = await self.stepper.call(lambda engine: engine.collective_rpc(method, kwargs=arguments))
        return list(results)

    def shutdown(self) -> None:
        """Stop vLLM and its processes. Safe to call twice."""
        if self._stepper is not None:
            self._stepper.stop(lambda engine: engine.engine_core.shutdown())
            self._stepper = None


def _rollout(output: Any, seconds: float, before: int = 0) -> Rollout:
    """`before`: so many tokens at the beginning are other turns'."""
    completion = output.outputs[0]
    spans = tuple(
        VersionSpan(int(s.version), s.end - max(s.start, before))
        for s in completion.weight_versions or ()
        if s.end > before
    )
    reason: FinishReason = completion.finish_reason if completion.finish_reason in ("stop", "length") else "abort"
    stop_string = completion.stop_reason if isinstance(completion.stop_reason, str) else None
    return Rollout(
        token_ids=np.asarray(completion.token_ids[before:], dtype=np.int32),
        log_probs=np.asarray(completion.logprobs.logprobs[before:] if completion.logprobs else (), dtype=np.float32),
        version_spans=spans,
        finish_reason=reason,
        seconds=seconds,
        stop_string=stop_string,
        end_ids=tuple(completion.token_ids[-1:]) if reason == "stop" and stop_string is None else (),
        num_cached=output.num_cached_tokens or 0,
    )


def on_cpu() -> bool:
    """Whether vLLM runs on its CPU platform here."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def transfer_backend(config: VcppoConfig) -> str:
    """``broadcast.backend`` with ``auto`` resolved for this machine."""
    return config.transfer_backend(on_cuda=config.broadcast.backend == "auto" and not on_cpu())
