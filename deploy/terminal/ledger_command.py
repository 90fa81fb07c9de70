"""`vcppo ledger`: where every prompt of a run is, and whether the accounts are exact."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vcppo.common.config import VcppoConfig
from vcppo.common.run_folder import RunFolder
from vcppo.common.store.access import connect_store
from vcppo.common.store.ledger import Ledger
from vcppo.common.store.run_store import RunStore
from vcppo.common.text.yaml_text import one_line
from vcppo.deploy.logs.log_lines import LogSink
from vcppo.deploy.processes import redis_server
from vcppo.deploy.processes.supervisor import Supervisor
from vcppo.deploy.run.run_config import RunError

MEANING = {
    "issued": "by the learner, ever",
    "queued": "waiting for a generator",
    "leased": "being generated",
    "buffered": "waiting for the learner",
    "claimed": "trained on, not yet in a durable checkpoint",
    "trained": "in a durable checkpoint",
    "rejected": "refused as invalid (dead letters)",
    "expired": "dropped as stragglers",
}


@contextmanager
def open_store(config: VcppoConfig) -> Iterator[RunStore]:
    """The run's store. Is its embedded server down, a copy of its data is served meanwhile: reading changes nothing.

    Raises:
        VcppoError: no server, or no data.
    """
    data, deadline = RunFolder(config.run.path).redis, config.redis.connect_deadline_seconds
    if config.redis.url is not None or redis_server.is_running(data):
        yield connect_store(config, url=config.redis.url or redis_server.url(data), deadline_seconds=deadline)
        return
    if not data.is_dir() or not any(data.iterdir()):
        raise RunError(f"run {config.run.name!r} has no store yet ({data} is empty): it was never brought up")
    with tempfile.TemporaryDirectory(prefix="vcppo-ledger-") as name:
        copy = Path(name) / "redis"
        shutil.copytree(data, copy, ignore=shutil.ignore_patterns("*.sock", "*.pid"))
        with Supervisor(
            LogSink(Path(name) / "logs", config.run.name), stop_deadline_seconds=10, start_deadline_seconds=60
        ) as supervisor:
            supervisor.start(redis_server.redis_spec(copy))
            supervisor.wait_ready(["redis"])
            yield RunStore.connect(redis_server.url(copy), config.run.name, deadline)


def ledger_table(ledger: Ledger) -> Table:
    """One line per state."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("prompts")
    table.add_column("count", justify="right")
    table.add_column("", style="bright_black")
    for state, count in ledger.as_dict().items():
        table.add_row(state, f"{count:,}", MEANING[state])
    return table


def print_ledger(store: RunStore, console: Console) -> bool:
    """Table, dead letters and verdict. Returns whether the ledger is exact."""
    ledger, letters = store.ledger(), store.dead_letters()
    console.print(ledger_table(ledger))
    verdict = (
        "[green]exact[/]"
        if ledger.is_exact
        else f"[red]NOT exact: issued differs from the sum by {ledger.difference:+d}[/]"
    )
    console.print(f"\nissued = sum of the other seven: {verdict}")
    if letters:
        newest = one_line(f"{letters[0].reason}: {letters[0].detail}", 1000)  # a peer's words: no markup, no escapes
        console.print(f"{len(letters)} dead letters; the newest: {newest}", markup=False, highlight=False)
    return ledger.is_exact
