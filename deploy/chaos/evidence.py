"""The proof at the end, from what the run has left on disk: nothing lost, nothing twice, nothing too old."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from vcppo.common.config import VcppoConfig
from vcppo.common.errors import VcppoError
from vcppo.common.evaluation.on_the_way import read_evaluations
from vcppo.common.records.ids import make_group_id, make_prompt_id, purpose_of
from vcppo.common.records.trained_log import check_trained_once, read_trained_log, replays_differ
from vcppo.common.records.trajectory import Purpose
from vcppo.common.run_folder import RunFolder
from vcppo.common.store import facts
from vcppo.common.store.ledger import DeadLetter, Ledger, Outstanding
from vcppo.deploy.terminal.open_store import open_store

# Faults that explain a dead letter: a prompt whose generators were killed or frozen under it too often in a row.
EXPLAINED_REASONS = ("poison prompt",)
PEER_PREFIX = "chaos-"
"""How chaos' own hostile peers call themselves, as the source of a dead letter."""
EMPTY: Mapping[str, str] = {}
_MANY = 10_000


class Check(NamedTuple):
    """One thing that must hold."""

    what: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Evidence:
    """What a run at rest shows.

    Attributes:
        next_index: purpose -> prompts the learner has issued by number.
        steps: step -> its line of trained.jsonl.
        evaluations: a line of evaluations.jsonl each.
    """

    ledger: Ledger
    outstanding: Sequence[Outstanding]
    dead_letters: Sequence[DeadLetter]
    next_index: dict[Purpose, int]
    steps: dict[int, dict[str, Any]]
    evaluations: Sequence[Mapping[str, Any]] = ()


def collect(config: VcppoConfig) -> Evidence:
    """Read it; a store whose server is down is read from its files."""
    with open_store(config) as store:
        purposes: tuple[Purpose, ...] = ("value_pretraining", "rl")
        return Evidence(
            store.ledger(),
            store.outstanding(),
            store.dead_letters(_MANY),
            {purpose: facts.next_index(purpose).read(store) or 0 for purpose in purposes},
            read_trained_log(RunFolder(config.run.path).trained_log),
            read_evaluations(RunFolder(config.run.path).evaluations),
        )


def checks(evidence: Evidence, config: VcppoConfig, spoilt: Mapping[str, str] = EMPTY) -> Iterator[Check]:
    """All that must hold of any run at rest, whatever it went through.

    Args:
        spoilt: prompts whose payload was changed in the store -> the state they were in.
    """
    ledger = evidence.ledger
    yield Check("ledger exact", ledger.is_exact, str(ledger))
    yield _trained_once(config, spoilt)
    yield Check(
        "nothing in flight at rest",
        ledger.leased == ledger.claimed == 0,
        f"{ledger.leased} leased, {ledger.claimed} claimed after an orderly stop",
    )
    yield _accounted_for(evidence, config)
    yield _trained_count(evidence)
    yield _dead_letters(evidence, spoilt)
    if evidence.evaluations:
        yield _evaluated(evidence)
    if spoilt:
        yield _spoilt(evidence, spoilt)


def _trained_once(config: VcppoConfig, spoilt: Collection[str]) -> Check:
    what = f"every trajectory trained once, staleness <= {config.rl.max_staleness}"
    path = RunFolder(config.run.path).trained_log
    try:
        count = check_trained_once(path, config.rl.max_staleness)
    except VcppoError as error:
        return Check(what, False, str(error))
    differing = replays_differ(path, spoilt)
    if differing:
        return Check(what, False, f"steps {differing[:5]} were replayed with other trajectories")
    return Check(what, True, f"{count:,} trajectories")


def _accounted_for(evidence: Evidence, config: VcppoConfig) -> Check:
    """By name: each prompt the learner issued was trained, is waiting, or was given up for a reason."""
    size = config.rl.group_size
    issued = {
        make_prompt_id(make_group_id(purpose, index // size), index % size)
        for purpose, count in evidence.next_index.items()
        for index in range(count)
    }
    claimed = {entry.prompt_id for entry in evidence.outstanding if entry.state == "claimed"}
    waiting = {entry.prompt_id for entry in evidence.outstanding} - claimed
    trained = trained_ids(evidence)
    recorded = {name for name in issued if purpose_of(name) == "value_pretraining"} - waiting - claimed
    missing = sorted(issued - trained - waiting - claimed - recorded)
    given_up = evidence.ledger.rejected + evidence.ledger.expired
    return Check(
        "every issued prompt accounted for",
        len(missing) <= given_up and not trained & waiting,
        f"{len(issued):,} issued by number: {len(issued & trained):,} trained in RL, {len(recorded):,} recorded, "
        f"{len(issued & waiting)} waiting, {len(missing)} missing of {given_up} given up"
        + (f", e.g. {missing[:3]}" if missing else ""),
    )


def _trained_count(evidence: Evidence) -> Check:
    """The store's counter against the learner's own book: two independent sources."""
    in_book = len(trained_ids(evidence)) + _num_recorded(evidence)
    claimed = {entry.prompt_id for entry in evidence.outstanding if entry.state == "claimed"}
    settled = evidence.ledger.trained + len(claimed & trained_ids(evidence))
    return Check(
        "store and learner agree", in_book == settled, f"{in_book:,} in the learner's book, {settled:,} in the store"
    )


def _num_recorded(evidence: Evidence) -> int:
    waiting = sum(purpose_of(entry.prompt_id) == "value_pretraining" for entry in evidence.outstanding)
    rejected = sum(
        purpose_of(letter.detail) == "value_pretraining"  # it begins with the prompt's id
        for letter in evidence.dead_letters
        if letter.reason in EXPLAINED_REASONS
    )
    return evidence.next_index["value_pretraining"] - waiting - rejected


def _dead_letters(evidence: Evidence, spoilt: Collection[str]) -> Check:
    """Each is a prompt that was given up for a known reason, or something that a hostile peer has sent."""
    of_prompts = [letter for letter in evidence.dead_letters if not letter.source.startswith(PEER_PREFIX)]
    unexplained = [
        letter
        for letter in of_prompts
        if letter.reason not in EXPLAINED_REASONS and not any(names(letter.detail, prompt) for prompt in spoilt)
    ]
    num_hostile = len(evidence.dead_letters) - len(of_prompts)
    detail = f"{len(of_prompts)} dead letters of prompts, {num_hostile} of hostile peers"
    if unexplained:
        first = unexplained[-1]
        detail += f", {len(unexplained)} unexplained, the first: {first.reason}: {first.detail}"
    faulty = evidence.ledger.rejected - evidence.ledger.without_signal  # dynamic sampling writes no dead letters
    return Check("dead letters explained", not unexplained and len(of_prompts) == faulty, detail)


def _spoilt(evidence: Evidence, spoilt: Mapping[str, str]) -> Check:
    """A payload that was changed costs its prompt, once; a claimed one may have been trained before."""
    trained = trained_ids(evidence)
    wrong = []
    for prompt_id, state in spoilt.items():
        letters = sum(names(letter.detail, prompt_id) for letter in evidence.dead_letters)
        if letters + (prompt_id in trained) != 1 or (prompt_id in trained and state != "claimed"):
            wrong.append(
                f"{prompt_id} ({state}): {letters} dead letters, {'' if prompt_id in trained else 'not '}trained"
            )
    return Check(
        "each spoilt payload is one dead letter and is not trained",
        not wrong,
        "; ".join(wrong[:3]) or f"{len(spoilt)} payloads",
    )


def _evaluated(evidence: Evidence) -> Check:
    """Each figure is of one version, and the store has counted at least the answers that the figures are of."""
    rows = evidence.evaluations
    mixed = [row["version"] for row in rows if row["versions_seen"] != [row["version"]]]
    answers = sum(each["num_samples"] for row in rows for each in (row, *row["benchmarks"].values()))
    lost = sum(each["num_lost"] for row in rows for each in (row, *row["benchmarks"].values()))
    counted = evidence.ledger.evaluated
    return Check(
        "each evaluation is of one policy version",
        not mixed and counted >= answers,
        f"{len(rows)} versions by {answers:,} answers, {counted:,} in the store, {lost} problems lost"
        + (f"; mixed: {mixed[:5]}" if mixed else ""),
    )


def names(detail: str, prompt_id: str) -> bool:
    """Whether a dead letter is of this prompt: its text begins with the id."""
    return detail == prompt_id or detail.startswith(f"{prompt_id}: ")


def trained_ids(evidence: Evidence) -> set[str]:
    """Prompts in the learner's book."""
    return {name for line in evidence.steps.values() for name in line["prompt_ids"]}


def process_checks(
    tracebacks: Sequence[str], unexplained_ends: Sequence[str], members: Collection[str], wanted: Sequence[str]
) -> Iterator[Check]:
    """What the processes themselves show."""
    yield Check("no error of our own", not tracebacks, "; ".join(tracebacks[:3]) or "no traceback in any log")
    yield Check(
        "every end explained",
        not unexplained_ends,
        "; ".join(unexplained_ends[:3]) or "each process that ended was hit, or said why",
    )
    yield Check(
        "all generators in the last broadcast",
        set(members) == set(wanted),
        f"{', '.join(sorted(members)) or 'none'}; wanted {', '.join(wanted) or 'none'}",
    )
