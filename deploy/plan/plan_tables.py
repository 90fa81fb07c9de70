"""A plan as tables: what the run needs, and what will not fit."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vcppo.common.config import VcppoConfig
from vcppo.deploy.plan.architecture import Models
from vcppo.deploy.plan.arithmetic import ModelMemory, Plan, gib, remarks

Row = tuple[str, str, str]


def print_plan(
    plan: Plan,
    config: VcppoConfig,
    tokens_per_second: float | None,
    placed: Sequence[Row],
    wrong: Sequence[str],
) -> bool:
    """Print the plan of a config. Returns whether everything fits.

    Args:
        tokens_per_second: of one generator, for the flows; None: flows per 1,000 tokens/s.
        placed: who computes where, a row each; empty: not asked.
        wrong: what will not fit, a line each.
    """
    console = Console(width=None if os.isatty(1) else 120, highlight=False)
    for title, rows in (
        ("model", model_rows(plan.models, config)),
        ("learner, each rank", rank_rows(plan, config)),
        ("generator, each device", generator_rows(plan, config)),
        ("between them", flow_rows(plan, config, tokens_per_second)),
        ("placement", placed),
    ):
        if rows:
            console.print(_table(title, rows))
    for remark in remarks(plan, config):
        console.print(f"note: {remark}", soft_wrap=True, markup=False)
    for problem in wrong:
        console.print(f"will not fit: {problem}", soft_wrap=True, markup=False)
    if not wrong:
        console.print("everything fits, by this arithmetic (nothing was measured)")
    return not wrong


def model_rows(models: Models, config: VcppoConfig) -> list[Row]:
    """Parameters of policy and critic: (name, figure, remark) each."""
    rows = [("policy", f"{models.policy.policy_parameters / 1e9:.3f} B parameters", "")]
    if config.algorithm.has_critic:
        backbone = "the same backbone" if models.critic == models.policy else "a backbone of its own"
        figure = f"{models.critic.critic_parameters / 1e9:.3f} B parameters"
        rows.append(("critic", figure, f"{backbone}, one number a token"))
    return rows


def rank_rows(plan: Plan, config: VcppoConfig) -> list[Row]:
    """Memory of one learner rank."""
    rank, learner = plan.rank, config.learner
    rows = [
        ("ranks", str(plan.num_ranks), f"ZeRO-{learner.zero_stage}, {config.model.dtype}"),
    ]
    if rank.base:
        rows.append(("base", f"{gib(rank.base)} GiB", "frozen, whole on every rank, shared by actor and critic"))
    rows.append(_memory("actor", rank.actor))
    if rank.critic is not None:
        rows.append(_memory("critic", rank.critic))
    if rank.reference is not None:
        rows.append(("reference", f"{gib(rank.reference)} GiB", "whole on every rank"))
    every = learner.recomputed_every
    how = f"one layer in {every} checkpointed" if every > 1 else "checkpointed" if every else "all kept"
    if (size := learner.sequence_parallel_size) > 1:
        how += f"; {size} ranks share packs of {size * learner.micro_batch_tokens:,}"
    rows.append(("activations", f"{gib(rank.activations)} GiB", f"{learner.micro_batch_tokens:,} tokens, {how}"))
    if rank.gathered:
        rows.append(("gathered layers", f"{gib(rank.gathered)} GiB", "two layers and the output layer, whole"))
    if rank.buckets:
        rows.append(("buckets", f"{gib(rank.buckets)} GiB", "DeepSpeed's, for gradients on their way"))
    of = "" if plan.gpu_bytes is None else f" of {gib(plan.gpu_bytes)}"
    rows.append(("together", f"{gib(rank.total)}{of} GiB", "without CUDA's context (1 GiB) and fragments"))
    rows.append(
        (
            "checkpoint",
            f"{gib(rank.checkpoint)} GiB",
            f"on disk, learner.keep_checkpoints = {learner.keep_checkpoints} of them",
        )
    )
    return rows


def generator_rows(plan: Plan, config: VcppoConfig) -> list[Row]:
    """Memory of one generator's device, and how many sequences fit its cache."""
    generator, settings = plan.generator, config.generator
    at_once = generator.sequences_at_once(settings.max_model_len)
    return [
        ("generators", str(plan.num_generators), f"tensor parallel over {settings.tensor_parallel_size}"),
        ("weights", f"{gib(generator.weights)} GiB", ""),
        ("keys and values", f"{generator.kv_per_token / 1024:.1f} KiB a token", ""),
        ("wanted", f"{gib(generator.kv_wanted)} GiB",
         f"{settings.max_in_flight} sequences of {settings.max_model_len:,}"),
        ("room", "unknown" if generator.kv_room is None else f"{gib(max(0, generator.kv_room))} GiB",
         "" if at_once is None else f"{at_once} sequences of full length"),
    ]  # fmt: skip


def flow_rows(plan: Plan, config: VcppoConfig, tokens_per_second: float | None) -> list[Row]:
    """What goes between processes; rates at `tokens_per_second` of one generator, None: at 1,000 in all."""
    flow = plan.flow
    rate = 1000.0 if tokens_per_second is None else tokens_per_second * plan.num_generators
    given = "at 1,000 tokens/s" if tokens_per_second is None else f"at {rate:,.0f} tokens/s"
    full = config.sampling.max_response_tokens
    return [
        (
            "credits",
            f"{flow.credits:,} prompts",
            f"(max_staleness {config.rl.max_staleness} + 1) * {config.rl.batch_size}",
        ),
        ("places", f"{flow.places:,} sequences", "of all generators together"),
        ("weight update", f"{gib(flow.update_bytes)} GiB", "sent once to the whole group"),
        ("trajectory", f"{flow.trajectory_bytes / 1024:.1f} KiB", f"with a response of {full:,} tokens"),
        (
            "trajectories",
            f"{rate * flow.bytes_per_token / 1024:.1f} KiB/s",
            f"{given}, {rate / full:.2f} of full length a second",
        ),
        ("redis", f"{flow.store_bytes / 2**20:.0f} MiB", "at most: credits, and what waits for a checkpoint"),
    ]


def host_memory() -> int:
    """Bytes of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _memory(name: str, memory: ModelMemory) -> Row:
    parts = (("weights", memory.weights), ("gradients", memory.gradients), ("optimizer", memory.optimizer))
    return name, f"{gib(memory.total)} GiB", ", ".join(f"{part} {gib(size)}" for part, size in parts)


def _table(title: str, rows: Sequence[Row]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, padding=(0, 2))
    table.add_column(min_width=16)
    table.add_column(min_width=22, justify="right")
    table.add_column(style="bright_black")
    for row in rows:
        table.add_row(*map(escape, row))
    return table
