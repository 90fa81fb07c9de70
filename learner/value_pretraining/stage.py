"""Value pretraining: before RL starts, a critic is trained until it predicts held-out returns (the paper's first cure).

    record    the frozen policy (version 0) answers num_trajectories prompts; each is written to disk once
    count     enough right and not-right responses must be held out, or the gate could say nothing
    train     critic on Monte-Carlo returns (GAE with lambda = 1), actions only
    (`vcppo.learner.value_pretraining.critic_pretrainer`) gate      explained variance on held-out prompts (whole
    groups), against Monte-Carlo returns: stop when it
              no longer rises and the held-out loss no longer falls, keep the best critic, write
              decision.json; below min_explained_variance the run stops

Recording consumes trajectories of purpose ``value_pretraining``, waits at most learner.batch_deadline_seconds for
one, and is unblocked by any append. It resumes where the file ends and needs no generators once that is
complete; training starts over after a crash (it is short). A finished stage (a passed decision of the same settings and
its critic) is skipped. Everything claimed here is committed here, so RL starts from an empty buffer.

A setting that only the critic depends on may change on the same run: the recording and decision.json say what they
were made with (`vcppo.learner.value_pretraining.recorded_with`), and what no longer fits is made again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from vcppo.common.config import VcppoConfig
from vcppo.common.config.dependents import differences
from vcppo.common.errors import EXIT_REFUSED, VcppoError
from vcppo.common.files.json_file import read_json_object
from vcppo.common.files.whole_file import write_whole
from vcppo.common.files.whole_folder import written_whole
from vcppo.common.records.seeds import derive_seed
from vcppo.common.records.trajectory import Trajectory
from vcppo.common.run_folder import CRITIC_FOLDER, DECISION_FILE, RECORD_FILE, RunFolder
from vcppo.common.store.run_store import RunStore
from vcppo.common.telemetry.metrics import MetricsWriter
from vcppo.learner.batching.batch import Share
from vcppo.learner.batching.trajectory_file import TrajectoryFile
from vcppo.learner.engine.deepspeed_engine import TrainEngine, broadcast_object, rank
from vcppo.learner.models.adapters import save_adapter
from vcppo.learner.models.base_model import base_models, write_base_models
from vcppo.learner.models.models import CriticModel, save_model
from vcppo.learner.supply.collect import PromptIssuer, give_up_outdated
from vcppo.learner.value_pretraining.critic_pretrainer import CriticPretrainer, Part
from vcppo.learner.value_pretraining.gate import verdict
from vcppo.learner.value_pretraining.gate_remedies import NEEDED_OF_EACH, cut_short, failed, too_few, uncertain
from vcppo.learner.value_pretraining.other_recordings import Recording, Taken, read_recordings, take_in
from vcppo.learner.value_pretraining.recorded_with import (
    check_recording,
    critic_inputs,
    digest,
    made_with,
    read_note,
    still_fits,
    write_note,
)
from vcppo.learner.value_pretraining.recording import Recorder, WeightSender, in_prompt_order, record, share_record
from vcppo.learner.value_pretraining.recording_stats import count_responses

log = structlog.get_logger(__name__)

_DECISION_REMEDY = "remove it, and value pretraining is done again from its recording"


class GateFailed(VcppoError):
    """The critic does not explain enough, or too little is held out to tell: RL on it could collapse as plain PPO."""

    exit_code = EXIT_REFUSED


def is_done(config: VcppoConfig) -> bool:
    """The stage's artefacts are there, made with these settings: a decision that passes, and its critic."""
    folder = RunFolder(config.run.path).value_pretraining
    note, decision = read_note(folder), _read_decision(folder)
    if note is None or decision is None or not _has_critic(folder) or not still_fits(config, note):
        return False
    # A decision by another threshold is written anew, so that what is shown is what is so.
    same = decision.get("threshold") == config.value_pretraining.min_explained_variance
    return same and decision.get("passed") is True and decision.get("inputs") == _plain(critic_inputs(config, note))


def _read_decision(folder: Path) -> dict[str, Any] | None:
    path = folder / DECISION_FILE
    return read_json_object(path, _DECISION_REMEDY) if path.exists() else None


def _has_critic(folder: Path) -> bool:
    return (folder / CRITIC_FOLDER / "config.json").exists()


def _judged_anew(decision: Mapping[str, Any], config: VcppoConfig) -> dict[str, Any]:
    """The decision with the threshold of now."""
    low, high = decision.get("low"), decision.get("high")
    interval = None if low is None or high is None else (low, high)
    threshold = config.value_pretraining.min_explained_variance
    return {**decision, **verdict(decision.get("explained_variance"), interval, threshold)}


def _plain(value: object) -> Any:
    """As it is read back from JSON."""
    return json.loads(json.dumps(value, default=str))


def _by_hash(trajectories: Sequence[Trajectory], seed: int) -> list[str]:
    """The prompts in the order in which they are held out."""
    return sorted({trajectory.group_id for trajectory in trajectories}, key=lambda g: (derive_seed(seed, g), g))


def split_held_out(
    trajectories: Sequence[Trajectory], num_held_out_groups: int, seed: int
) -> tuple[list[Trajectory], list[Trajectory]]:
    """(train, held out): the prompts with the lowest hashes are held out, each with all its responses.

    Raises:
        VcppoError: one of the sides is empty.
    """
    groups = _by_hash(trajectories, seed)
    chosen = set(groups[:num_held_out_groups])
    train = [trajectory for trajectory in trajectories if trajectory.group_id not in chosen]
    held_out = [trajectory for trajectory in trajectories if trajectory.group_id in chosen]
    if not train or not held_out:
        raise VcppoError(
            f"holding out {num_held_out_groups} of {len(groups)} prompts leaves {len(train)} trajectories to train on "
            f"and {len(held_out)} to measure with: change value_pretraining.held_out_fraction or num_trajectories"
        )
    return train, held_out


def enough_held_out(counted: Sequence[Trajectory], config: VcppoConfig, num_taken: int = 0) -> float | None:
    """The least held_out_fraction that holds out `NEEDED_OF_EACH` right and not-right responses; None: none does.

    At most half of the prompts are held out, and a mini-batch is left to train on. `num_taken` prompts are of other
    recordings.
    """
    stage, group_size = config.value_pretraining, config.rl.group_size
    right: dict[str, list[bool]] = {}
    for trajectory in counted:
        right.setdefault(trajectory.group_id, []).append(trajectory.outcome == "correct")
    num_groups = stage.num_trajectories // group_size + num_taken
    num_right = num_not_right = 0
    for number, group in enumerate(_by_hash(counted, config.run.seed), start=1):
        num_right += sum(right[group])
        num_not_right += len(right[group]) - sum(right[group])
        if min(num_right, num_not_right) >= NEEDED_OF_EACH:
            fraction = math.ceil(1000 * number / num_groups) / 1000
            held_out = round(num_groups * fraction)
            fits = fraction <= 0.5 and (num_groups - held_out) * group_size >= stage.batch_size
            return fraction if fits and held_out >= number else None
    return None


# The stage


def run_value_pretraining(
    config: VcppoConfig,
    share: Share,
    store: RunStore | None,
    issuer: PromptIssuer | None,
    metrics: MetricsWriter | None,
    stop_requested: Callable[[], bool],
    weights: WeightSender | None = None,
) -> bool:
    """The whole stage on every rank; ``store``, ``issuer`` and ``metrics`` are rank 0's.

    Args:
        weights: sends version 0 to generators while trajectories are recorded; None: they have it.

    Returns:
        True when the critic is there and passed; False when asked to stop before.

    Raises:
        GateFailed: names the figure, the counts behind it and the fields to change.
        RecordingOutdated: what is recorded was made with something else than the config says.
    """
    folder = RunFolder(config.run.path).value_pretraining
    file = TrajectoryFile(folder / RECORD_FILE, stop_requested) if store is not None else None
    recorder, note, others = None, {}, list[Recording]()
    if store is not None and issuer is not None and file is not None:
        note = check_recording(folder, config, issuer.source, len(file))
        others = read_recordings(config, note, issuer.source)  # before anything is recorded for nothing
        give_up_outdated(store, digest(made_with(config, issuer.source.task)))
        recorder = Recorder(config, store, issuer, file)
    if not record(recorder, metrics, stop_requested, weights):
        return False
    if weights is not None:
        weights.release()
    confirm = (lambda: None) if store is None else store.confirm  # before each file that another learner reads
    confirm()
    if file is not None:
        write_note(folder, {**note, "longest_tokens": _longest(file.trajectories, config)})
    taken = None if file is None else _with_others(file, others, config)
    trajectories = share_record(None if taken is None else taken.trajectories)
    num_taken, recordings = broadcast_object(None if taken is None else (taken.num_new_prompts, taken.facts))
    num_held_out = config.value_pretraining.num_held_out_groups(config.rl.group_size, num_taken)
    train, held_out = (Part.of(side, config) for side in split_held_out(trajectories, num_held_out, config.run.seed))
    facts: dict[str, Any] = {
        "num_train": len(train.batch.rollouts),
        "num_held_out": len(held_out.batch.rollouts),
        "recorded": count_responses(trajectories).as_json(),
        "recordings": recordings,
        "held_out": held_out.counts.as_json(),
        "inputs": _plain(critic_inputs(config, note)) if note else None,
    }
    _check_counts(train, held_out, config, folder, facts)
    earlier = broadcast_object(_of_same_inputs(folder, facts["inputs"]) if rank() == 0 else None)
    if earlier is not None:
        return _decide(_judged_anew(earlier, config), folder, config)
    pretrainer = CriticPretrainer(config, share, train, held_out, metrics)
    save = partial(_save_critic, folder=folder / CRITIC_FOLDER, confirm=confirm, config=config)
    gate = pretrainer.run(save, stop_requested)
    if gate is None:
        return False
    confirm()
    return _decide({**gate.decision(pretrainer.judged), **facts}, folder, config)


def _with_others(file: TrajectoryFile, others: Sequence[Recording], config: VcppoConfig) -> Taken:
    """The run's own recording as far as it is asked for, and what is taken from others."""
    own = in_prompt_order(file.trajectories)[: config.value_pretraining.num_trajectories]
    taken = take_in(own, config.run.seed, others, config.generator.max_model_len)
    for each in taken.facts:
        log.info("recording_taken_in", **each)
    return taken


def _longest(trajectories: Sequence[Trajectory], config: VcppoConfig) -> int:
    """Tokens of the longest recorded prompt with the longest response it could get."""
    prompts = (len(each.prompt_token_ids) for rollout in trajectories for each in rollout.conversations)
    return max(prompts) + config.sampling.max_response_tokens


def _check_counts(train: Part, held_out: Part, config: VcppoConfig, folder: Path, facts: Mapping[str, Any]) -> None:
    """Too few of one kind: say so before the critic is trained. Graded rewards have no kinds."""
    counted = [each for part in (train, held_out) for each in part.counted_rollouts]
    if _is_graded(counted):
        return
    recorded, stage = count_responses(counted), config.value_pretraining
    num_taken = sum(each["num_new_prompts"] for each in facts["recordings"])
    fraction = enough_held_out(counted, config, num_taken)
    message = too_few(held_out.counts, recorded, stage, config.rl.group_size, fraction)
    if message is None:
        return
    why = f"too few of one kind held out: {NEEDED_OF_EACH} are needed"
    decision = {
        **verdict(None, None, stage.min_explained_variance),
        "best_step": None, "best_explained_variance": None, "cut_short": False, "stopped_because": why,
        "history": [], **facts, "inputs": None, "message": message,
    }  # fmt: skip
    _write(decision, folder)
    raise GateFailed(message)


def _is_graded(trajectories: Iterable[Trajectory]) -> bool:
    """Whether right responses, or the others, differ in their rewards among themselves."""
    rewards: dict[bool, set[float]] = {True: set(), False: set()}
    for trajectory in trajectories:
        rewards[trajectory.outcome == "correct"].add(trajectory.reward)
    return max(map(len, rewards.values())) > 1


def _of_same_inputs(folder: Path, inputs: Any) -> dict[str, Any] | None:
    """Rank 0: an earlier decision whose critic was made with these inputs; else None, and the old one is removed."""
    decision = _read_decision(folder)
    if decision is None:
        return None
    before = decision.get("inputs") or {}
    if before == inputs and _has_critic(folder):
        return decision
    changed = [str(change) for change in differences(before.get("settings", {}), inputs["settings"])]
    if before and before.get("recordings", []) != inputs["recordings"]:
        changed.append("the recordings of value_pretraining.recordings are others")
    if before and before["num_trajectories"] != inputs["num_trajectories"]:
        changed.append(f"value_pretraining.num_trajectories was {before['num_trajectories']}")
    if before and before.get("critic_model") != inputs["critic_model"]:
        changed.append("the files at critic.model are others")
    log.info("value_pretraining_critic_outdated", changed=changed, effect="it is trained again from the recording")
    (folder / DECISION_FILE).unlink()
    return None


def _save_critic(engine: TrainEngine, folder: Path, confirm: Callable[[], None], config: VcppoConfig) -> None:
    """All ranks (gathers); rank 0 replaces the folder by rename. With ``lora.rank``: adapters, head and config.json."""
    bases = base_models(config)
    state = {} if bases else engine.gather_full_state_dict()
    if rank() != 0:
        return
    assert isinstance(engine.module, CriticModel)
    confirm()
    with written_whole(folder) as staging:
        if not bases:
            save_model(engine.module, staging, state)
            return
        engine.module.hf_model.config.save_pretrained(str(staging))
        save_adapter(engine.module.hf_model, staging, bases["critic"]["path"])
        write_base_models(staging, {"critic": bases["critic"]})


def _decide(decision: dict[str, Any], folder: Path, config: VcppoConfig) -> bool:
    """Write decision.json, warn of what to know about it. Raises GateFailed unless it passed."""
    stage = config.value_pretraining
    message = None if decision["passed"] else failed(decision, stage)
    warnings = []
    if decision["cut_short"] and decision["passed"]:
        warnings.append(cut_short(stage, str(config.run.path)))
    if (doubt := uncertain(decision, stage, config.rl.group_size)) is not None:
        warnings.append(doubt)
    _write({**decision, "message": message, "warnings": warnings}, folder)
    if rank() == 0:
        for warning in warnings:
            log.warning("value_pretraining_doubt", text=warning)
    if message is not None:
        raise GateFailed(message)
    return True


def _write(decision: Mapping[str, Any], folder: Path) -> None:
    if rank() != 0:
        return
    write_whole(folder / DECISION_FILE, json.dumps(decision, indent=1))
    long = ("history", "inputs", "message", "warnings")
    log.info("value_pretraining_decided", **{name: value for name, value in decision.items() if name not in long})
