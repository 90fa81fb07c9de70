"""How a crashed learner goes on: the checkpoint, then the claimed batches again, then the live stream.

Resume. Load the newest sound checkpoint (step c); commit what is claimed for steps <= c (the crash may have come
between checkpoint and commit); then train the other claimed batches again, c + 1, c + 2, ..., in recorded order,
from the same weights, optimizer state and seeds, without issuing or broadcasting; then broadcast once and go on.
Why once, at the end: generators never run a newer version than the last claim's step s (version s is made from it), and
after the replay the learner is at s. So no trajectory in the store or on its way is newer than the
learner (staleness >= 0), and since replay issues nothing and changes no claim, the bound of
`vcppo.learner.supply.credits` holds as it did before the crash. Generators go on with what is leased meanwhile.

A claimed trajectory that can't be used any more (`vcppo.learner.supply.quarantine`), or that a person rejects, is
missing from its step, which is trained with the others: the ledger counts it as rejected, the commit names only what
was trained, and the step's new line in trained.jsonl, which is the one that counts, leaves it out. It has no
replacement: that would be made by weights that came after the step. Group baselines are of the members that are left.
Where nothing is left the step trains nothing and its version is a label for the weights before; the store remembers
that it is no gap.

If damage forced an older checkpoint (c < the last committed step), the steps between are lost: their
trajectories are settled. Versions are labels, so the learner keeps the label of the last committed step,
says so in the log, and staleness stays within its bound.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from vcppo.common.config import VcppoConfig
from vcppo.common.config.dependents import dependents_of, differences, flat, settings_of
from vcppo.common.errors import VcppoError
from vcppo.common.files.json_file import read_json_object
from vcppo.common.files.whole_file import write_whole
from vcppo.common.store import facts
from vcppo.common.store.run_store import RunStore, StoreChanged
from vcppo.learner.engine.checkpoint import CheckpointStore, hash_json
from vcppo.learner.rl.rank_zero import RankZero

log = structlog.get_logger(__name__)

_SETTINGS_FILE = "settings.json"  # in a checkpoint: what RL was made with up to its step


def newest_checkpoint(checkpoints: CheckpointStore, config: VcppoConfig) -> dict[str, Any] | None:
    """Rank 0: the newest sound checkpoint as plain values for the other ranks; None: start from the beginning."""
    newest = checkpoints.newest()
    if newest is None:
        return None
    folder, state = newest
    if state.config_hash != config_hash(config):
        _say_what_changed(folder, config, state.step)
    return {"folder": str(folder), "step": state.step, "next_index": state.next_index, "extra": state.extra}


def plan_replay(store: RunStore, version: int, checkpoints: Path) -> dict[str, Any]:
    """Rank 0: commit the claims the checkpoint of ``version`` contains; say what to replay.

    Returns:
        ``version`` to go on from, and ``claims``: [step, prompt ids] of the steps to train again, in order.

    Raises:
        VcppoError: store and run folder do not belong together.
    """
    committed = facts.COMMITTED_STEP.read(store) or 0
    if committed > version:
        _say_what_is_lost(version, committed, checkpoints)
        version = committed
    claims = sorted(store.claimed().items())
    emptied = set(facts.emptied_steps(store))  # of these all that was claimed was rejected since
    _check_store_is_not_older(store, version, committed, emptied | {step for step, _ in claims}, checkpoints)
    for step, prompt_ids in claims:
        if step <= version:
            commit(store, prompt_ids, step)
    left = [[step, prompt_ids] for step, prompt_ids in claims if step > version]
    known = {step for step, _ in left}
    left = sorted(left + [[step, []] for step in emptied if step > version and step not in known])
    if [step for step, _ in left] != list(range(version + 1, version + 1 + len(left))):
        raise VcppoError(
            f"claimed steps {[step for step, _ in left]} do not follow step {version} of {checkpoints}: "
            "the store and the run folder are not of the same run; give each run its own run.name and Redis"
        )
    return {"version": version, "claims": left}


def sound_claims(step: int, prompt_ids: list[str], rank_zero: RankZero) -> list[bytes]:
    """Rank 0: the payloads of a claimed step that can be used; the other prompts are rejected."""
    emptied = partial(facts.note_emptied_step, rank_zero.store, step)
    return list(rank_zero.collector.quarantine.sound(prompt_ids, if_none_is=emptied).values())


def _check_store_is_not_older(
    store: RunStore, version: int, committed: int, claimed_steps: set[int], checkpoints: Path
) -> None:
    """What a checkpoint has and the store has not committed must still be claimed there: a crash came in between.

    Steps are settled in their order, so a crash within a commit may have left the last one alone. A store without any
    prompt is a new one, which is begun at the checkpoint.

    Raises:
        StoreChanged: the store was restored from an earlier day: it would have steps trained a second time.
    """
    if committed >= version or version in claimed_steps:
        return
    missing = min(set(range(committed + 1, version + 1)) - claimed_steps)
    if store.ledger().issued == 0:
        log.warning("store_is_new", checkpoint_step=version, effect="what was open is gone; the ledger counts from 0")
        facts.COMMITTED_STEP.write(store, version)
        return
    raise StoreChanged(
        f"{checkpoints} has step {version}, and the store neither committed nor claimed step {missing}: its data are"
        f" of an earlier day than the checkpoint. Restore newer data of the store, or move the checkpoints after step"
        f" {committed} away, and start the run again"
    )


def commit(store: RunStore, prompt_ids: list[str], step: int) -> None:
    """Settle what a durable checkpoint contains, and remember up to which step."""
    newest = max(step, facts.COMMITTED_STEP.read(store) or 0)
    store.commit(prompt_ids, facts.COMMITTED_STEP.stored(newest))


def config_hash(config: VcppoConfig) -> str:
    """Of the settings that shape RL; where a run lives and how it logs does not matter to a checkpoint."""
    return hash_json(_settings(config))


def write_settings(staging: Path, config: VcppoConfig) -> None:
    """Into a checkpoint, so that a resumed run can say what has changed."""
    write_whole(staging / _SETTINGS_FILE, json.dumps(_settings(config), indent=1))


def _settings(config: VcppoConfig) -> dict[str, object]:
    return settings_of("rl", flat(config.model_dump(mode="json")))


def _say_what_changed(folder: Path, config: VcppoConfig, step: int) -> None:
    """A line for each: the config counts from the next step on. The launcher refuses what RL must begin with."""
    path = folder / _SETTINGS_FILE
    if not path.exists():
        log.warning("config_changed", folder=str(folder), effect="the config counts; which settings is not known")
        return
    for change in differences(
        read_json_object(path, "remove the checkpoint; the one before it is used"), _settings(config)
    ):
        begins = dependents_of(change.field).rl == "begins"
        say = log.warning if begins else log.info
        say("setting_changed", setting=change.field, before=change.before, now=change.now, from_step=step + 1)


def _say_what_is_lost(version: int, committed: int, checkpoints: Path) -> None:
    if version == 0:
        raise VcppoError(
            f"the store has {committed} committed steps but {checkpoints} holds no checkpoint: "
            "restore the folder, or start a new run under another run.name"
        )
    log.error(
        "steps_lost",
        checkpoint_step=version,
        committed_step=committed,
        effect="their updates are gone, their trajectories settled; going on under the committed version",
    )
