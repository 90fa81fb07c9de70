"""One model under DeepSpeed: forward, accumulate, step, gather, save. The only importer of deepspeed.

Losses come in as sums over this rank's micro-batch divided by the GLOBAL token count (see
`vcppo.learner.algorithm.losses`), so gradients must be *summed* over micro-batches and ranks. DeepSpeed averages over
ranks (ZeRO-3 can't do otherwise), so `TrainEngine.accumulate` multiplies each loss by the number of ranks first: exact
for powers of two, one rounding otherwise. Accumulation is unmanaged (``managed_gradient_accumulation: false``):
DeepSpeed neither counts micro-batches nor divides by their number, and `step` is the boundary.
"""

from __future__ import annotations

import io
import logging
import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import structlog
import torch
from torch import Tensor, nn

from vcppo.common.config import VcppoConfig
from vcppo.common.errors import VcppoError
from vcppo.learner.algorithm.learning_rates import rate_factor
from vcppo.learner.engine.configured_optimizer import Configured
from vcppo.learner.engine.distributed import (
    barrier,
    broadcast_bytes,
    broadcast_object,
    choose_device,
    init_distributed,
    num_ranks,
    rank,
    shutdown_distributed,
    sum_over_ranks,
)
from vcppo.learner.engine.load_by_name import check_trained, load_by_name, load_weights
from vcppo.learner.engine.save_errors import SaveErrors
from vcppo.learner.engine.saved_state import SavedState, read_saved_state
from vcppo.learner.engine.shard_layout import Layout
from vcppo.learner.engine.sharding import shard
from vcppo.learner.models.merged_weights import adapted_layers, is_adapter, trained_with_adapters
from vcppo.learner.models.wire_weights import ParameterInfo, WireWeights, own_weights, whole_weight

__all__ = [
    "EngineOptions",
    "ParameterInfo",
    "TrainEngine",
    "barrier",
    "broadcast_bytes",
    "broadcast_object",
    "choose_device",
    "init_distributed",
    "load_module_weights",
    "num_ranks",
    "rank",
    "sharing",
    "shutdown_distributed",
    "sum_over_ranks",
]

log = structlog.get_logger(__name__)

_CHECKPOINT_TAG = "engine"
_SHARED_MEMORY_OP = "deepspeed_shm_comm"


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How one engine computes and steps.

    Attributes:
        zero_stage: 0 replicates all; 1 shards optimizer state; 2 gradients too; 3 weights too.
        dtype: of weights in forward and backward; with bfloat16 the optimizer keeps float32 master weights.
        offload_optimizer: its state is in host memory, and its step is made there. Stages 1 to 3.
        offload_parameters: this rank's part of the weights is in host memory between uses. Stage 3.
        schedule: ``constant``, or ``cosine`` to 0 over total_steps; both after a linear warm-up.
    """

    zero_stage: Literal[0, 1, 2, 3] = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    offload_optimizer: bool = False
    offload_parameters: bool = False
    weight_decay: float = 0.0
    adam_beta2: float = 0.999
    max_grad_norm: float = 1.0
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0
    total_steps: int | None = None

    @classmethod
    def from_config(cls, config: VcppoConfig) -> EngineOptions:
        """The run's settings, with a constant schedule: RL scales it (`TrainEngine.scale_learning_rate`)."""
        return cls(
            **sharing(config),
            weight_decay=config.rl.weight_decay,
            adam_beta2=config.rl.adam_beta2,
            max_grad_norm=config.rl.max_grad_norm,
        )

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of the weights and activations; the optimizer keeps float32."""
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32

    @property
    def computed_stage(self) -> int:
        """Without ZeRO, DeepSpeed would accumulate gradients in bfloat16; stage 1 keeps float32 masters and sums."""
        return max(1, self.zero_stage) if self.dtype == "bfloat16" else self.zero_stage


def sharing(config: VcppoConfig) -> dict[str, Any]:
    """The fields of `EngineOptions` that every engine of a run has alike."""
    learner = config.learner
    return {
        "zero_stage": learner.zero_stage,
        "dtype": config.model.dtype,
        "offload_optimizer": learner.offload.optimizer == "cpu",
        "offload_parameters": learner.offload.parameters == "cpu",
    }


class TrainEngine:
    """A `PolicyModel` or `CriticModel` with its optimizer. Every method is collective: call it on all ranks alike."""

    def __init__(
        self, module: nn.Module, *, learning_rate: float, options: EngineOptions, rate_setting: str = "learning_rate"
    ) -> None:
        """Move `module` to this rank's device, shard it as the ZeRO stage says, and take rank 0's weights everywhere.

        Args:
            module: its `hf_model` attribute is the transformers model whose weights `weight_source` walks. What needs
                no gradient stays as it is (`vcppo.learner.models.freezing`).
            learning_rate: peak of the schedule.
            rate_setting: what the config calls it, for the error of a diverged run.
        """
        init_distributed()
        deepspeed = _import_deepspeed()
        self.options = options
        settings = _deepspeed_config(options)
        if options.zero_stage == 3:
            with _prints_to_log():
                cut = partial(deepspeed.zero.Init, config_dict_or_path=settings, dtype=options.torch_dtype)
                shard(module, options.torch_dtype, lambda each: cut(module=each))
        else:
            _cast_parameters(module, options.torch_dtype)
        optimizer = torch.optim.AdamW(
            [parameter for parameter in module.parameters() if parameter.requires_grad],
            lr=learning_rate,
            betas=(0.9, options.adam_beta2),
            weight_decay=options.weight_decay,
            fused=True,  # one pass over the weights: ten times as fast on a CPU as the loop of tensor operations
        )
        configured = Configured.of(optimizer, options.max_grad_norm)
        self._rate_scale = 1.0
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate_factor)
        with _prints_to_log():
            self._engine, *_ = deepspeed.initialize(
                model=module,
                optimizer=optimizer,
                lr_scheduler=scheduler,
                config=settings,
                dist_init_required=False,
            )
        for buffer in module.buffers():  # DeepSpeed has moved what it has cut, and no buffers with it
            buffer.data = buffer.data.to(self._engine.device)
        self._deepspeed = deepspeed
        self._hf_model: Any = module.hf_model
        self._wire = WireWeights(self._hf_model)
        self._trained = trained_with_adapters(module)
        self._grad_norm = math.nan
        self._configured = configured
        self._rate_setting = rate_setting
        self._scheduler = scheduler
        self.module = module
        self.num_ranks = num_ranks()
        _own_clipping(self)
        _load_weights_only(self._engine.checkpoint_engine)
        if self._trained:
            _keep_trained_only(self._engine, self._trained)
        self._save_errors = SaveErrors(self._engine)
        self._engine.train()

    @property
    def device(self) -> torch.device:
        """Where this rank's weights are and its batches must be."""
        return torch.device(self._engine.device)

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return float(self._engine.get_lr()[0])

    def scale_learning_rate(self, factor: float) -> None:
        """Multiply the schedule by `factor` from the next step on, until this is called again. No checkpoint has it."""
        self._rate_scale = factor
        for group, peak in zip(self._engine.optimizer.param_groups, self._scheduler.base_lrs, strict=True):
            group["lr"] = peak * self._rate_factor(self._scheduler.last_epoch)

    def _rate_factor(self, num_steps_done: int) -> float:
        options = self.options
        return self._rate_scale * rate_factor(
            num_steps_done + 1,
            schedule=options.schedule,
            warmup_steps=options.warmup_steps,
            num_steps=options.total_steps,
        )

    def set_learning_rate(self, learning_rate: float) -> None:
        """Use this for the next step only, in place of the schedule's (the cold start has a cosine per phase)."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate

    def forward(self, *args: Any) -> Any:
        """The module's forward with gradients. Under ZeRO-3 every rank must make equally many calls."""
        return self._engine(*args)

    __call__ = forward

    @torch.no_grad()
    def infer(self, *args: Any) -> Any:
        """The module's forward without gradients (values, old log-probs, canary)."""
        self._engine.eval()
        try:
            return self._engine(*args)
        finally:
            self._engine.train()

    def accumulate(self, loss: Tensor) -> None:
        """Add this micro-batch's gradients. `loss`, a scalar, is already divided by the global token count."""
        self._engine.backward(loss * self.num_ranks, scale_wrt_gas=False)

    def step(self) -> float:
        """Sum gradients over ranks, clip their global norm, update; returns the norm before clipping.

        Raises:
            VcppoError: the norm is not finite. Weights were not changed by NaN: the run must stop here.
        """
        self._engine.step()
        recorded = self._engine.get_global_grad_norm()
        norm = float(recorded) if recorded is not None else self._grad_norm
        if not math.isfinite(norm):
            raise VcppoError(
                f"gradient norm is {norm} in {type(self.module).__name__}: training diverged; lower "
                f"{self._rate_setting} (it was {self.learning_rate:.3g} here): the same command goes on with it from "
                "what is on disk"
            )
        return norm

    def weight_metadata(self) -> list[ParameterInfo]:
        """Every weight generators need, tied ones once, in the order of `weight_source`. Gathers nothing."""
        return self._wire.infos

    def weight_source(self) -> Iterator[tuple[str, Tensor]]:
        """(name in the checkpoint, full tensor ``[...]``) one after the other; valid until the next one is asked for.

        Under ZeRO-3 they are gathered on all ranks, so every rank must iterate to the end.
        """
        return self._wire.walk(self._gathered)

    def gather_full_state_dict(self) -> dict[str, Tensor]:
        """Full weights ``[...]`` by the module's own names, on rank 0's CPU; other ranks get {}. Tied weights once.

        These are the names `vcppo.learner.models.models.save_model` wants. Adapters are merged, and there besides.
        """
        state: dict[str, Tensor] = {}
        adapted = adapted_layers(self._hf_model)
        for name, tensor in own_weights(self._hf_model).items():
            with self._gathered([tensor] if isinstance(tensor, nn.Parameter) else []):
                if rank() == 0:
                    state[name] = whole_weight(adapted, name, tensor).cpu().clone()
        if rank() == 0:
            own = trained_with_adapters(self._hf_model)
            state |= {name: each.detach().cpu().clone() for name, each in own.items() if is_adapter(name)}
        return state

    @torch.no_grad()
    def copy_weights_to(self, hf_model: nn.Module) -> None:
        """Into a whole transformers model of the same kind on this rank, weight by weight, in its own type.

        A model with adapters has the same base: only adapters are copied.
        """
        if mine := trained_with_adapters(self._hf_model):
            others = trained_with_adapters(hf_model)
            for name, parameter in mine.items():
                others[name].copy_(parameter)
            return
        target = own_weights(hf_model)
        for name, tensor in own_weights(self._hf_model).items():
            with self._gathered([tensor] if isinstance(tensor, nn.Parameter) else []):
                target[name].copy_(tensor)

    def save(self, folder: str | Path) -> None:
        """Weights, optimizer and schedule, cut as they are: no rank gathers or sends anything.

        With adapters only they and a critic's head: the base is where it came from.
        DeepSpeed writes these with torch.save. What this rank could not write is raised when all ranks are through.
        """
        with _prints_to_log():
            self._engine.save_checkpoint(
                str(folder), tag=_CHECKPOINT_TAG, save_latest=False, exclude_frozen_parameters=bool(self._trained)
            )
        self._save_errors.raise_first()

    def load(self, folder: str | Path) -> None:
        """Continue where `save` was called: weights, moments and step counts are the saved ones.

        Learning rate, weight decay, betas and the clipping norm are those this engine was made with; what differs from
        the saved ones is a log line. With the same settings the next step is the one that would have followed.

        Saved by another number of ranks or at another ZeRO stage, it is read by the names of the parameters
        (`vcppo.learner.engine.load_by_name`).

        Files are read with ``weights_only`` and a short list of DeepSpeed's own types: a checkpoint can't run code.

        Raises:
            VcppoError: nothing there, or saved of another model or with other parameters trained.
        """
        with _loading(folder), _prints_to_log():
            saved = _saved_state(folder)
            before, now = saved.layout, Layout.of(self.options.computed_stage, self.num_ranks, self.options.dtype)
            if before == now:
                check_trained(self.module, saved)  # DeepSpeed takes flat tensors of the same size, whatever they are of
                del saved
                self._engine.load_checkpoint(str(folder), tag=_CHECKPOINT_TAG)
            else:
                load_by_name(self._engine, saved, now.stage, rank(), self.num_ranks)
        if before != now and rank() == 0:
            log.info("checkpoint_cut_anew", folder=str(folder), saved=str(before), now=str(now))
        changed = self._configured.restore(self._engine.optimizer, self._scheduler)
        if changed and rank() == 0:
            log.info("optimizer_settings_changed", model=type(self.module).__name__, **changed)

    def _gathered(self, parameters: list[nn.Parameter]) -> AbstractContextManager[Any]:
        if self.options.zero_stage < 3 or not parameters:
            return nullcontext()
        context: AbstractContextManager[Any] = self._deepspeed.zero.GatheredParameters(parameters)
        return context


def _cast_parameters(module: nn.Module, dtype: torch.dtype) -> None:
    """Parameters only. Buffers keep their type: rotary frequencies in bfloat16 would turn far tokens too far."""
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def _deepspeed_config(options: EngineOptions) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": options.max_grad_norm,
        "steps_per_print": None,
        "bf16": {"enabled": options.dtype == "bfloat16"},
        "zero_optimization": {"stage": options.computed_stage, "overlap_comm": False, **_offloaded(options)},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",  # else the summed gradients are rounded to bfloat16, also on one rank
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def _offloaded(options: EngineOptions) -> dict[str, Any]:
    """Pinned: pages that a GPU copies from and to by itself."""
    wanted = {"offload_optimizer": options.offload_optimizer, "offload_param": options.offload_parameters}
    return {name: {"device": "cpu", "pin_memory": True} for name, is_wanted in wanted.items() if is_wanted}


def _own_clipping(engine: TrainEngine) -> None:
    """At stage 0 in float32 DeepSpeed clips but tells nobody the norm: clip with torch and keep it."""

    def clip_fp32_gradients() -> None:
        norm = nn.utils.clip_grad_norm_(engine.module.parameters(), engine.options.max_grad_norm)
        engine._grad_norm = float(norm)

    engine._engine.clip_fp32_gradients = clip_fp32_gradients


def _keep_trained_only(engine: Any, trained: dict[str, nn.Parameter]) -> None:
    """DeepSpeed's own way to leave frozen weights out keeps tied ones, and takes a file that lacks some."""

    def state_dict(**_: Any) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in trained.items()}

    def load_state_dict(checkpoint: Any, **_: Any) -> None:
        found = checkpoint["module"]
        if found.keys() != trained.keys():
            raise ValueError(f"{sorted(found.keys() ^ trained.keys())[:2]} are in the file or in the adapters only")
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(found[name].view_as(parameter))

    engine.module_state_dict, engine.load_module_state_dict = state_dict, load_state_dict


def load_module_weights(module: nn.Module, folder: str | Path, dtype: torch.dtype) -> None:
    """What `TrainEngine.save` wrote, on any number of ranks, into a plain module; its optimizer's state is not read.

    The module's weights get `dtype`, as an engine's do.

    Raises:
        VcppoError: as `TrainEngine.load`.
    """
    _import_deepspeed()
    _cast_parameters(module, dtype)
    with _loading(folder):
        load_weights(module, _saved_state(folder))


@contextmanager
def _loading(folder: str | Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # foreign files make DeepSpeed and torch raise nearly anything
        raise VcppoError(
            f"checkpoint {folder} can't be loaded ({error}); it must come from the same model, with the same settings"
            " of what is frozen: set them back, or remove this checkpoint and the one before it is used"
        ) from error


def _saved_state(folder: str | Path) -> SavedState:
    return read_saved_state(Path(folder) / _CHECKPOINT_TAG, partial(_read_weights_only, mmap=True))


def _read_weights_only(path: str | Path, map_location: Any = "cpu", *, mmap: bool = False) -> Any:
    """DeepSpeed's files with tensors and its own plain types only, not with everything pickle can do."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
        return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)


def _load_weights_only(checkpoint_engine: Any) -> None:
    """DeepSpeed would read with everything pickle can do."""
    checkpoint_engine.load = _read_weights_only


@contextmanager
def _prints_to_log() -> Iterator[None]:
    """DeepSpeed print()s here and there; standard output is for log lines."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        yield
    for line in filter(None, map(str.strip, printed.getvalue().splitlines())):
        log.debug("deepspeed_printed", text=line)


def _import_deepspeed() -> Any:
    """DeepSpeed, quiet: its own stdout handler goes, its records go through logging like everybody's."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # it asks for all that pickle can do; so torch.load refuses it
    import deepspeed
    from deepspeed.utils import logger

    # On a CPU DeepSpeed would compile its shared-memory collectives with g++ at the first start, behind a lock file
    # that a killed process leaves locked for ever: every later start on the machine then hangs. gloo needs none of it.
    deepspeed.ops.__compatible_ops__[_SHARED_MEMORY_OP] = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    logger.propagate = True
    logger.setLevel(logging.WARNING)
    return deepspeed
