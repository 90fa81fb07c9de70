"""What DeepSpeed has saved of one model, by the names of its parameters, however it was cut.

    mp_rank_00_model_states.pt                    stages 0 to 2: weights; at stage 0 the optimizer's state too
    zero_pp_rank_<r>_mp_rank_00_model_states.pt   stage 3, one a rank: shapes, and its parts of what is frozen
    [bf16_]zero_pp_rank_<r>_..._optim_states.pt   stages 1 to 3, one a rank: flat masters and moments

Files are mapped into memory: only what is asked for is read. A rank that loads its share reads no more than that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vcppo.learner.engine.shard_layout import Layout, Piece, pieces_of_parts, pieces_of_slices

MASTER = "fp32"  # the float32 weights
MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam
STEP = "step"
_COUNTERS = ("global_steps", "global_samples", "skipped_steps")

Read = Callable[[Path], Any]


@dataclass
class SavedState:
    """One model's part of a checkpoint.

    Attributes:
        layout: how it is cut.
        shapes: of each trained parameter that is known by name; empty at stage 0.
        scheduler: the schedule's own state.
        counters: DeepSpeed's, by attribute.
        settings: of the optimizer's parameter groups, without ``params``.
        clip_grad: the clipping norm; None where DeepSpeed does not write it.
    """

    layout: Layout
    scheduler: dict[str, Any]
    counters: dict[str, int]
    settings: list[dict[str, Any]]
    clip_grad: float | None
    shapes: dict[str, tuple[int, ...]]
    _whole: Mapping[str, Tensor]  # weights and buffers, as the model has them
    _frozen: Mapping[str, list[Tensor]]  # stage 3: by rank
    _pieces: dict[str, list[Piece]]
    _flats: Sequence[Sequence[Mapping[str, Tensor]]] = field(repr=False)  # rank → group → MASTER, MOMENTS, STEP

    def copy(self, kind: str, name: str, start: int, into: Tensor) -> None:
        """Elements ``[start, start + len(into))`` of a trained parameter's ``kind`` into the flat tensor `into` [N].

        Raises:
            ValueError: the checkpoint does not have all of them.
        """
        end, num_copied = start + into.numel(), 0
        for piece in self._pieces.get(name, []):
            first, last = max(start, piece.start), min(end, piece.start + piece.numel)
            if first < last:
                flat = self._flats[piece.rank][piece.group][kind]
                source = flat.view(-1).narrow(0, piece.offset + first - piece.start, last - first)
                into.narrow(0, first - start, last - first).copy_(source)
                num_copied += last - first
        if num_copied != into.numel():
            raise ValueError(f"it has {num_copied} of {into.numel()} elements of {kind} of {name}")

    @property
    def step(self) -> Tensor | None:
        """How many steps Adam has made; None: none."""
        return next((step for name in self._pieces if (step := self.step_of(name)) is not None), None)

    def step_of(self, name: str) -> Tensor | None:
        """How many steps Adam has made with this parameter; None: none."""
        piece = self._pieces[name][0]
        return self._flats[piece.rank][piece.group].get(STEP)

    def copy_weight(self, name: str, into: Tensor) -> None:
        """The whole weight or buffer into a contiguous tensor of its shape, in the type of that.

        Raises:
            ValueError: it is not there, or of another shape.
        """
        flat = into.view(-1)
        if name in self.shapes:
            self.copy(MASTER, name, 0, flat)
        elif name in self._frozen:
            flat.copy_(torch.cat(self._frozen[name])[: flat.numel()])
        elif name in self._whole:
            into.copy_(self._whole[name].view_as(into))
        else:
            raise ValueError(f"it has no {name}")

    def name_plain(self, names: Sequence[str]) -> None:
        """At stage 0 the optimizer's state is by number: `names` are the trained parameters in its order.

        Raises:
            ValueError: there are not as many.
        """
        if self.layout.stage:
            return
        groups = self._flats[0]
        if len(groups) != len(names):
            raise ValueError(f"its optimizer has {len(groups)} parameters and the model trains {len(names)}")
        for number, (name, group) in enumerate(zip(names, groups, strict=True)):
            weight = self._whole[name]
            group[MASTER] = weight  # type: ignore[index]
            self._pieces[name] = [Piece(0, weight.numel(), 0, number, 0)]
            self.shapes[name] = tuple(weight.shape)


def read_saved_state(folder: Path, read: Read) -> SavedState:
    """Open the files in `folder`; `read` maps one.

    Raises:
        OSError, KeyError, ValueError, pickle.UnpicklingError: they are not there, or not as DeepSpeed writes them.
    """
    whole_file, part_files = folder / "mp_rank_00_model_states.pt", "zero_pp_rank_{}_mp_rank_00_model_states.pt"
    model = read(whole_file if whole_file.exists() else folder / part_files.format(0))
    config = model["ds_config"]
    stage, num_ranks = int(config["zero_optimization"]["stage"]), int(model["dp_world_size"])
    bfloat16 = bool(config["bf16"]["enabled"])
    frozen: dict[str, list[Tensor]] = {}
    if stage == 0:
        settings, flats = _plain_groups(model["optimizer"])
        pieces, clip_grad = {}, None
    else:
        prefix = "bf16_" if bfloat16 else ""
        name = f"{prefix}zero_pp_rank_{{}}_mp_rank_00_optim_states.pt"
        shards = [read(folder / name.format(rank))["optimizer_state_dict"] for rank in range(num_ranks)]
        clip_grad = shards[0].get("clip_grad")
        if stage == 3:
            settings, flats = _flat_groups(shards, "fp32_flat_groups", "optimizer_state_dict")
            sizes = {name: shape.numel() for group in model["param_shapes"] for name, shape in group.items()}
            pieces = pieces_of_parts(sizes, [group[MASTER].numel() for group in flats[0]], num_ranks)
            models = [model, *(read(folder / part_files.format(rank)) for rank in range(1, num_ranks))]
            names = model["frozen_param_fragments"] or {}
            frozen = {name: [each["frozen_param_fragments"][name] for each in models] for name in names}
        else:
            settings, flats = _flat_groups(shards, "single_partition_of_fp32_groups", "base_optimizer_state")
            pieces = pieces_of_slices([shard["param_slice_mappings"] for shard in shards])
    return SavedState(
        layout=Layout.of(stage, num_ranks, "bfloat16" if bfloat16 else "float32"),
        scheduler=model["lr_scheduler"],
        counters={name: int(model[name]) for name in _COUNTERS},
        settings=settings,
        clip_grad=clip_grad,
        shapes={name: tuple(shape) for group in model["param_shapes"] or [] for name, shape in group.items()},
        _whole={name: tensor for name, tensor in model["module"].items() if stage < 3 or tensor.numel()},
        _frozen=frozen,
        _pieces=pieces,
        _flats=flats,
    )


def _plain_groups(optimizer: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[list[dict[str, Tensor]]]]:
    """Settings, and one group of tensors for each parameter; a parameter without a gradient has no moments yet."""
    numbers = [number for group in optimizer["param_groups"] for number in group["params"]]
    return _settings(optimizer), [[dict(optimizer["state"].get(number, {})) for number in numbers]]


def _flat_groups(
    shards: Sequence[Mapping[str, Any]], masters: str, optimizer: str
) -> tuple[list[dict[str, Any]], list[list[dict[str, Tensor]]]]:
    """Settings, and by rank and group the flat tensors; the moments' number is the group's."""
    flats = [
        [{MASTER: master, **shard[optimizer]["state"].get(number, {})} for number, master in enumerate(shard[masters])]
        for shard in shards
    ]
    return _settings(shards[0][optimizer]), flats


def _settings(optimizer: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer["param_groups"]]
