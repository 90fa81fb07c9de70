"""A checkpoint that was cut otherwise into a DeepSpeed engine: each rank takes the parts that are its own now.

    saved state, by name ──▶ weights (what is frozen too) ──▶ this rank's flat masters and moments ──▶ `load_state_dict`

What goes into the optimizer has the form of its own ``state_dict``, so DeepSpeed itself takes it in, as from a file
that fits. Masters are written where they are used, and moments are adopted: no rank holds a tensor twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vcppo.learner.engine.saved_state import MASTER, MOMENTS, STEP, SavedState
from vcppo.learner.engine.shard_layout import Piece, pieces_of_parts
from vcppo.learner.models.merged_weights import trained_with_adapters


@torch.no_grad()
def load_by_name(engine: Any, saved: SavedState, stage: int, rank: int, num_ranks: int) -> None:
    """Weights, optimizer, schedule and counters into DeepSpeed's `engine`. All ranks; no collective but ZeRO 3's own.

    Raises:
        ValueError: the checkpoint is of another model, or other parameters are trained.
    """
    trained = check_trained(engine.module, saved)
    if stage == 3:
        engine.optimizer.checkpoint_event_prologue()  # all parameters are cut
    _load_weights(engine.module, saved, stage, rank)
    if stage == 0:
        _load_plain(engine.optimizer, saved, trained)
    elif stage == 3:
        _load_parts(engine.optimizer, saved, trained, rank, num_ranks)
        engine.optimizer.checkpoint_event_epilogue()
    else:
        _load_slices(engine.optimizer, saved, trained, rank)
    engine.lr_scheduler.load_state_dict(saved.scheduler)
    for name, value in saved.counters.items():
        setattr(engine, name, value)


@torch.no_grad()
def load_weights(module: nn.Module, saved: SavedState) -> None:
    """Weights and buffers alone, into a module that is whole. Raises ValueError as `load_by_name` does."""
    _load_weights(module, saved, 0, 0)


def check_trained(module: nn.Module, saved: SavedState) -> dict[str, nn.Parameter]:
    """The parameters that `module` trains, by name, which are those of the checkpoint.

    Raises:
        ValueError: the checkpoint is of another model, or other parameters are trained.
    """
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    saved.name_plain([*trained])
    _check_names(saved, trained)
    return trained


def _check_names(saved: SavedState, trained: Mapping[str, nn.Parameter]) -> None:
    shapes = {name: tuple(getattr(parameter, "ds_shape", parameter.shape)) for name, parameter in trained.items()}
    for name in sorted(shapes.keys() | saved.shapes.keys()):
        if shapes.get(name) != saved.shapes.get(name):
            there, here = (
                f"has {name} {list(found[name])}" if name in found else f"does not train {name}"
                for found in (saved.shapes, shapes)
            )
            raise ValueError(f"the checkpoint {there}, the model now {here}")


def _load_weights(module: nn.Module, saved: SavedState, stage: int, rank: int) -> None:
    """At stage 3 what is trained comes with the masters, and of what is frozen each rank takes its part.

    With adapters a checkpoint has them and a critic's head alone.
    """
    if own := trained_with_adapters(module):
        for name, parameter in own.items():
            saved.copy_weight(name, parameter.data)
        return
    for name, buffer in _persistent_buffers(module):
        saved.copy_weight(name, buffer)
    for name, parameter in module.named_parameters():
        if stage < 3:
            saved.copy_weight(name, parameter.data)
        elif not parameter.requires_grad:
            mine: Any = parameter
            whole = torch.zeros(mine.ds_shape, dtype=mine.ds_tensor.dtype)
            saved.copy_weight(name, whole)
            part = whole.view(-1)[rank * mine.ds_tensor.ds_numel :][: mine.ds_tensor.ds_numel]
            mine.ds_tensor.view(-1)[: part.numel()].copy_(part)


def _persistent_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    kept = module.state_dict(keep_vars=True).keys()
    return ((name, buffer) for name, buffer in module.named_buffers() if name in kept)


def _load_plain(optimizer: Any, saved: SavedState, trained: Mapping[str, nn.Parameter]) -> None:
    """torch's own optimizer: a state for each parameter. Its masters are the weights."""
    states = []
    for name, parameter in trained.items():
        piece = Piece(0, parameter.numel(), 0, 0, 0)
        states.append({} if saved.step_of(name) is None else _fill(saved, {name: piece}, parameter.data.view(-1)))
        for kind in states[-1].keys() & {*MOMENTS}:
            states[-1][kind] = states[-1][kind].view_as(parameter)
    optimizer.load_state_dict(_with_state(optimizer.state_dict(), saved, states))


def _load_slices(optimizer: Any, saved: SavedState, trained: Mapping[str, Any], rank: int) -> None:
    """ZeRO 1 and 2, and bfloat16's optimizer."""
    template = optimizer.state_dict()
    masters = [group["params"][0] for group in optimizer.param_groups]  # with their padding, as the moments are
    pieces: list[dict[str, Piece]] = [{} for _ in masters]
    for name, parameter in trained.items():
        if (mapping := parameter._hp_mapping) is not None:  # None: other ranks have all of it
            of, at, group = mapping.lp_fragment_address, mapping.hp_fragment_address, mapping.param_group_index
            pieces[group][name] = Piece(of.start, of.numel, rank, group, at.start)
    states = [_fill(saved, *both) for both in zip(pieces, masters, strict=True)]
    filled = template | {"base_optimizer_state": _with_state(template["base_optimizer_state"], saved, states)}
    if saved.clip_grad is not None:
        filled["clip_grad"] = saved.clip_grad
    optimizer.load_state_dict({rank: filled}, load_optimizer_states=True, load_from_fp32_weights=True)


def _load_parts(optimizer: Any, saved: SavedState, trained: Mapping[str, Any], rank: int, num_ranks: int) -> None:
    """ZeRO 3."""
    template = optimizer.state_dict()
    masters = template["fp32_flat_groups"]
    sizes = {name: int(parameter.ds_numel) for name, parameter in trained.items()}
    pieces: list[dict[str, Piece]] = [{} for _ in masters]
    for name, mine in pieces_of_parts(sizes, [flat.numel() for flat in masters], num_ranks, [rank]).items():
        for piece in mine:
            pieces[piece.group][name] = piece
    states = [_fill(saved, *both) for both in zip(pieces, masters, strict=True)]
    filled = template | {"optimizer_state_dict": _with_state(template["optimizer_state_dict"], saved, states)}
    optimizer.load_state_dict({rank: filled}, load_optimizer_states=True)


def _fill(saved: SavedState, pieces: Mapping[str, Piece], master: Tensor) -> dict[str, Tensor]:
    """This rank's flat `master` [N], in place, and Adam's state of it; {} before its first step."""
    for name, piece in pieces.items():
        saved.copy(MASTER, name, piece.start, master.narrow(0, piece.offset, piece.numel))
    if (step := saved.step) is None:
        return {}
    state = {STEP: step.clone()} | {kind: torch.zeros_like(master) for kind in MOMENTS}
    for name, piece in pieces.items():
        if saved.step_of(name) is not None:
            for kind in MOMENTS:
                saved.copy(kind, name, piece.start, state[kind].narrow(0, piece.offset, piece.numel))
    return state


def _with_state(base: Mapping[str, Any], saved: SavedState, states: Sequence[dict[str, Tensor]]) -> dict[str, Any]:
    """A ``state_dict`` of torch's optimizer: `states` in its order, settings of the checkpoint, parameters as now."""
    groups = base["param_groups"]
    if len(groups) != len(saved.settings):
        raise ValueError(f"its optimizer has {len(saved.settings)} groups of parameters, this one {len(groups)}")
    return {
        "state": {number: state for number, state in enumerate(states) if state},
        "param_groups": [
            {**settings, "params": group["params"]} for settings, group in zip(saved.settings, groups, strict=True)
        ],
    }
