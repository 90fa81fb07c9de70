"""Every remedy that is printed works when it is followed: no dead ends.

`CONFIG` are refusals of the config itself: a config that is refused, and what the text says to do; then it is accepted.
`ON_A_RUN` are texts of a run that has begun: what they say to set must be taken by the same run at that stage.
`test_no_remedy_is_left_out` looks through the sources for texts that name a setting to change: each is in a table.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.paths import ROOT
from tests.unit.rig.fake_run import config_of
from vcppo.common.config import ConfigError, ValuePretrainingConfig, config_fields, dump_config, load_config
from vcppo.common.run_folder import RunFolder
from vcppo.deploy.run.run_config import write_config
from vcppo.learner.value_pretraining.gate import verdict
from vcppo.learner.value_pretraining.gate_remedies import NEEDED_OF_EACH, cut_short, failed, too_few, uncertain
from vcppo.learner.value_pretraining.recording_stats import OUTCOMES, Counts


class Refusal(NamedTuple):
    """``overrides`` are refused for ``because``; each of ``remedies``, added to them, is a way out of it.

    ``{0}`` in a remedy is the number the text names after the remedy's setting or, if it says "it", the refused one.
    """

    overrides: list[str]
    because: str
    remedies: list[list[str]]


CONFIG = [
    Refusal(["rl.batch_size=100"], "to 96 or 104", [["rl.batch_size=96"], ["rl.batch_size=104"]]),
    Refusal(["rl.batch_size=8", "algorithm.num_mini_batches=9"], "lower it to 8", [["algorithm.num_mini_batches=8"]]),
    Refusal(
        ["learner.batch_deadline_seconds=50"], "raise it to 600", [["learner.batch_deadline_seconds=600"]]
    ),
    Refusal(
        ["algorithm.old_log_probs=behaviour", "algorithm.importance_truncation=2.0"],
        "set it to null",
        [["algorithm.importance_truncation=null"]],
    ),
    Refusal(
        ["algorithm.old_log_probs=behaviour", "algorithm.rejection=token"],
        "set that to proximal, or algorithm.rejection to null",
        [["algorithm.old_log_probs=proximal"], ["algorithm.rejection=null"]],
    ),
    Refusal(
        ["algorithm.rejection_high=5"],
        "set that to token",
        [["algorithm.rejection=token"], ["algorithm.rejection=sequence"], ["algorithm.rejection=geometric"]],
    ),
    Refusal(
        ["algorithm.importance_truncation=null", "algorithm.importance_level=sequence"],
        "set it to token",
        [["algorithm.importance_level=token"]],
    ),
    Refusal(
        ["algorithm.objective=cispo", "algorithm.dual_clip=3"], "set it to null", [["algorithm.dual_clip=null"]]
    ),
    Refusal(["algorithm.objective=dis", "algorithm.dual_clip=3"], "set it to null", [["algorithm.dual_clip=null"]]),
    Refusal(
        ["algorithm.importance_truncation=null", "algorithm.importance_normalised=true"],
        "set it to false",
        [["algorithm.importance_normalised=false"]],
    ),
    Refusal(["algorithm.dual_clip=1.1"], "raise it to 2.2", [["algorithm.dual_clip=2.2"]]),
    Refusal(["algorithm.kl_estimator=k2"], "set that above 0", [["algorithm.kl_coefficient=0.01"]]),
    Refusal(["algorithm.kl_in=reward"], "set that above 0", [["algorithm.kl_coefficient=0.01"]]),
    Refusal(["algorithm.reference_refresh_steps=5"], "set that above 0", [["algorithm.kl_coefficient=0.01"]]),
    Refusal(
        ["algorithm.entropy_target=0.2", "algorithm.entropy_coefficient=0.01"],
        "set that to 0, or algorithm.entropy_target to null",
        [["algorithm.entropy_coefficient=0"], ["algorithm.entropy_target=null"]],
    ),
    Refusal(
        ["algorithm.entropy_target=0.2", "algorithm.entropy_step=0.2"],
        "lower it to 0.005",
        [["algorithm.entropy_step=0.005"]],
    ),
    Refusal(["algorithm.entropy_limit=0.2"], "set that, or leave", [["algorithm.entropy_target=0.2"]]),
    Refusal(
        ["algorithm.advantage_level=turn", "algorithm.gamma=0.99"],
        "set it to 1, or algorithm.advantage_level to token",
        [["algorithm.gamma=1"], ["algorithm.advantage_level=token"]],
    ),
    Refusal(
        ["task.max_rollout_seconds=600"],
        "lower it to 300, or raise the latter above it",
        [["task.max_rollout_seconds=300"], ["learner.batch_deadline_seconds=601"]],
    ),
    Refusal(
        ["algorithm.segment_cutpoints=3"],
        "set that to segment, or leave",
        [["algorithm.advantage_level=segment"], ["algorithm.segment_cutpoints=5"]],
    ),
    Refusal(
        ["algorithm.advantage_estimator=group_mean", "algorithm.advantage_level=turn"],
        "set it to token",
        [["algorithm.advantage_level=token"]],
    ),
    Refusal(
        ["algorithm.advantage_estimator=reinforce_plus_plus", "algorithm.whiten_advantages=false"],
        "set it to null, or algorithm.advantage_estimator to group_centred",
        [["algorithm.whiten_advantages=null"], ["algorithm.advantage_estimator=group_centred"]],
    ),
    Refusal(["task.reward_correct=1e9"], "the paper's are 1 and -1", [["task.reward_correct=1.0"]]),
    Refusal(["task.reward_correct=-2.0"], "the paper's are 1 and -1", [["task.reward_correct=1.0"]]),
    Refusal(
        ["task.reward_range=[-0.5, 2.0]"], "set it to [-1, 2]", [["task.reward_range=[-1.0, 2.0]"],
        ["task.reward_range=null"]],
    ),
    Refusal(
        ["task.soft_overlong_cache=1000"], "set it to 256 or less", [["task.soft_overlong_cache=256"],
        ["task.soft_overlong_cache=51"]],
    ),
    Refusal(
        ["task.soft_overlong_penalty=0.5"], "set that above 0, or leave", [["task.soft_overlong_cache=50"],
        ["task.soft_overlong_penalty=1.0"]],
    ),
    Refusal(
        ["task.rewards=[{name: 'a:f'}]", "task.reward_weights={f: 0.5}"], "leave one of the two out",
        [["task.rewards=[]"]],
    ),
    Refusal(
        ["task.reward_service.url=http://a", "task.judge.url=http://b", "task.judge.model=m"],
        "set one of the two to null",
        [["task.reward_service.url=null"], ["task.judge.url=null"]],
    ),
    Refusal(["task.reward_service.url=a:1/reward"], "write it as http://", [["task.reward_service.url=http://a:1/b"]]),
    Refusal(["task.reward_service.url=http://a:b"], "write it as http://", [["task.reward_service.url=https://a"]]),
    Refusal(
        ["task.reward_service.url=http://me:secret@a:1"],
        "name that in task.reward_service.key_file",
        [["task.reward_service.url=http://a:1", "task.reward_service.key_file=secret"]],
    ),
    Refusal(
        ["task.reward_service.url=http://a", "task.reward_service.ca_file=ca.pem"],
        "set it to null",
        [["task.reward_service.ca_file=null"], ["task.reward_service.url=https://a"]],
    ),
    Refusal(["task.judge.url=http://a/v1"], "name the model", [["task.judge.model=m"]]),
    Refusal(
        ["task.judge.url=http://a/v1", "task.judge.model=m", "task.judge.template='How good is {prompt}?'"],
        "has no {response} and no {messages} in it",
        [["task.judge.template='How good is {response}?'"], ["task.judge.template_file=judge.txt"]],
    ),
    Refusal(
        ["task.judge.url=http://a/v1", "task.judge.model=m", "task.judge.pattern='Grade: [0-9]'"],
        "put one pair of brackets round the number",
        [["task.judge.pattern='Grade: ([0-9])'"], ["task.judge.pattern=null"]],
    ),
    Refusal(
        ["task.judge.url=http://a/v1", "task.judge.model=m", "task.judge.scale=[5.0, 5.0]"],
        "set it to the worst and the best number",
        [["task.judge.scale=[1.0, 5.0]"]],
    ),
    Refusal(["task.length_cost=100000.0"], "use smaller rewards, weights and costs", [["task.length_cost=0.001"]]),
    Refusal(
        ["algorithm.advantage_estimator=group_mean", "rl.group_size=1"], "set it to 2 or more", [["rl.group_size=2"]]
    ),
    Refusal(
        ["rl.dynamic_sampling=rewards", "rl.group_size=1"],
        "set that to 2 or more, or rl.dynamic_sampling to null",
        [["rl.group_size=2"], ["rl.dynamic_sampling=null"]],
    ),
    Refusal(["rl.difficulty.window=3"], "set that to true", [["rl.difficulty.enabled=true"]]),
    Refusal(
        ["rl.difficulty.enabled=true", "rl.difficulty.hard_to=0.9"], "set it to 0.2", [["rl.difficulty.hard_to=0.2"]]
    ),
    Refusal(
        ["rl.difficulty.enabled=true", *(f"rl.difficulty.{pool}_share=0" for pool in ("easy", "edge", "hard"))],
        "set it to 1",
        [["rl.difficulty.edge_share=1"]],
    ),
    Refusal(
        ["rl.dynamic_sampling_max_batches=9"],
        "set that to rewards or outcomes",
        [["rl.dynamic_sampling=rewards"], ["rl.dynamic_sampling=outcomes"]],
    ),
    Refusal(
        ["algorithm.advantage_estimator=group_mean", "algorithm.truncation=bootstrap"],
        "set it to terminal or mask",
        [["algorithm.truncation=terminal"], ["algorithm.truncation=mask"]],
    ),
    Refusal(
        ["algorithm.advantage_estimator=group_mean", "algorithm.value_clip=0.2"],
        "set it to null",
        [["algorithm.value_clip=null"]],
    ),
    Refusal(
        ["algorithm.advantage_estimator=group_mean", "algorithm.lambda_actor=0.9"],
        "set it to 0.95",
        [["algorithm.lambda_actor=0.95"]],
    ),
    Refusal(
        ["algorithm.advantage_estimator=group_mean", "value_pretraining.num_trajectories=64"],
        "set it to 0",
        [["value_pretraining.num_trajectories=0"]],
    ),
    Refusal(
        ["algorithm.advantage_estimator=group_mean", "critic.head=two_hot"],
        "set it to scalar",
        [["critic.head=scalar"]],
    ),
    Refusal(
        ["algorithm.advantage_estimator=group_mean", "critic.sees_log_probs=true"],
        "set it to false",
        [["critic.sees_log_probs=false"]],
    ),
    Refusal(
        ["algorithm.advantage_estimator=group_mean", "critic.model=c/d"], "set it to null", [["critic.model=null"]]
    ),
    Refusal(
        ["critic.init=runs/a/reward_model", "critic.model=c/d"],
        "set that to policy or value_pretrained",
        [["critic.init=policy"], ["critic.init=value_pretrained"], ["critic.model=null"]],
    ),
    Refusal(
        ["algorithm.advantage_estimator=group_mean", "critic.freeze=[embed]"], "set it to []", [["critic.freeze=[]"]]
    ),
    Refusal(
        ["algorithm.advantage_estimator=group_mean", "rl.critic_freeze=[mlp]"],
        "set it to []",
        [["rl.critic_freeze=[]"]],
    ),
    Refusal(["critic.freeze=['(']"], "is no regular expression", [["critic.freeze=['[(]']"]]),
    Refusal(["rl.actor_freeze=['']"], "leave it out", [["rl.actor_freeze=[]"]]),
    Refusal(
        ["critic.num_bins=33"], "set that to two_hot or hl_gauss", [["critic.head=two_hot"], ["critic.head=hl_gauss"]]
    ),
    Refusal(
        ["critic.head=two_hot", "critic.sigma_ratio=1.5"], "set that to hl_gauss", [["critic.head=hl_gauss"]]
    ),
    Refusal(
        ["critic.head=two_hot", "algorithm.value_clip=0.2"],
        "set it to null, or critic.head to scalar",
        [["algorithm.value_clip=null"], ["critic.head=scalar"]],
    ),
    Refusal(["critic.head=two_hot", "critic.value_min=-0.5"], "set it to -1", [["critic.value_min=-1.0"]]),
    Refusal(["critic.head=hl_gauss", "critic.value_max=0.5"], "set it to 1", [["critic.value_max=1.0"]]),
    Refusal(  # a discount takes returns to nearly 0
        ["critic.head=two_hot", "task.reward_wrong=0.5", "critic.value_min=0.5", "algorithm.gamma=0.99"],
        "set it to 0",
        [["critic.value_min=0.0"], ["critic.value_min=null"]],
    ),
    Refusal(
        ["critic.head=hl_gauss", "critic.num_bins=12", "critic.sigma_ratio=2"],
        "raise it to 51 or more, or lower critic.sigma_ratio to 0.25",
        [["critic.num_bins=51"], ["critic.sigma_ratio=0.25"]],
    ),
    Refusal(
        ["value_pretraining.num_trajectories=0"],
        "set that to 4096",
        [["value_pretraining.num_trajectories=4096"], ["critic.init=policy"], ["critic.init=runs/a/reward_model"]],
    ),
    Refusal(  # 4096 is no multiple of 12
        ["value_pretraining.num_trajectories=0", "rl.group_size=12", "rl.batch_size=120"],
        "set that to 4104",
        [["value_pretraining.num_trajectories=4104"]],
    ),
    Refusal(
        ["value_pretraining.num_trajectories=1001"],
        "set it to 1000 or 1008",
        [["value_pretraining.num_trajectories=1000"], ["value_pretraining.num_trajectories=1008"]],
    ),
    Refusal(
        ["value_pretraining.num_trajectories=16", "value_pretraining.batch_size=8"],
        "raise value_pretraining.num_trajectories to 96",
        [["value_pretraining.num_trajectories=96"]],
    ),
    Refusal(
        ["value_pretraining.held_out_fraction=0.001"],
        "raise it to 0.004, or raise value_pretraining.num_trajectories to 12000",
        [["value_pretraining.held_out_fraction=0.004"], ["value_pretraining.num_trajectories=12000"]],
    ),
    Refusal(
        ["value_pretraining.batch_size=4000"],
        "lower it to 3584 or less, or raise value_pretraining.num_trajectories to 4568",
        [["value_pretraining.batch_size=3584"], ["value_pretraining.num_trajectories=4568"]],
    ),
    Refusal(  # nothing is left to train on: no batch is small enough
        ["value_pretraining.held_out_fraction=0.9999"],
        "set value_pretraining.held_out_fraction to 0.125",
        [["value_pretraining.held_out_fraction=0.125"]],
    ),
    Refusal(
        ["value_pretraining.recordings=[runs/a]", "critic.init=policy"],
        "set that to value_pretrained",
        [["critic.init=value_pretrained"], ["value_pretraining.recordings=[]"]],
    ),
    Refusal(
        ["value_pretraining.recordings=[runs/a, runs/b, runs/a]"],
        "runs/a is given twice: keep one",
        [["value_pretraining.recordings=[runs/a, runs/b]"]],
    ),
    Refusal(
        ["value_pretraining.recordings=[runs/a]", "algorithm.advantage_estimator=group_mean"],
        "set it to []",
        [["value_pretraining.recordings=[]"]],
    ),
    Refusal(
        ["sft.phases=[{steps: 1}]"],
        "sft.architecture is empty",
        [["sft.architecture={model_type: llama}"], ["sft.init=some/model"]],
    ),
    Refusal(
        ["sft.init=some/model", "sft.architecture={model_type: llama}"],
        "leave it out or set sft.init = scratch",
        [["sft.architecture={}"], ["sft.init=scratch"]],
    ),
    Refusal(
        ["sampling.max_response_tokens=512"],
        "raise the latter above it, or lower it below 512",
        [["generator.max_model_len=513"], ["sampling.max_response_tokens=511"]],
    ),
    Refusal(
        ["generator.max_model_len=9000"],
        "raise it to 9000 or more",
        [["learner.micro_batch_tokens=9000"]],
    ),
    Refusal(  # 0.12207 MiB are needed; three digits of it were not enough
        ["generator.max_model_len=8000", "transport.max_message_mib=0.12"],
        "raise it to 0.13 or more",
        [["transport.max_message_mib=0.13"]],
    ),
    Refusal(["transport.spool_memory_mib=1"], "raise it to that or more", [["transport.spool_memory_mib=64"]]),
    Refusal(["generator.lease_seconds=10"], "raise it to 15", [["generator.lease_seconds=15"]]),
    Refusal(
        ["generator.engine_options={max_model_len: 9}"],
        "set generator.max_model_len instead",
        [["generator.engine_options={}", "generator.max_model_len=600"]],
    ),
    Refusal(
        ["broadcast.backend=nccl", "learner.device=cpu"],
        "set it to auto or gloo",
        [["broadcast.backend=auto"], ["broadcast.backend=gloo"]],
    ),
    Refusal(["transport.endpoints=[localhost]"], "write tcp://host:port", [["transport.endpoints=[tcp://a:5000]",
                                                                          "redis.url=redis://a:6379/0"]]),
    Refusal(
        ["transport.endpoints=[tcp://elsewhere:5000]"],
        "set redis.url, or use tcp://127.0.0.1:port",
        [["redis.url=redis://elsewhere:6379/0"], ["transport.endpoints=[tcp://127.0.0.1:5000]"]],
    ),
    Refusal(
        ["transport.endpoints=[tcp://127.0.0.1:5000, tcp://127.0.0.1:5000]"],
        "keep one",
        [["transport.endpoints=[tcp://127.0.0.1:5000]"]],
    ),
    Refusal(["redis.url=redis://a:b"], "write it as redis://host:port/0", [["redis.url=redis://a:6379/0"]]),
    Refusal(["redis.url=http://a:1"], "must begin with redis://", [["redis.url=redis://127.0.0.1:6379/0"]]),
    Refusal(
        ["redis.url=redis://:secret@a:6379"],
        "name that in redis.password_file",
        [["redis.url=redis://a:6379", "redis.password_file=secret"]],
    ),
    Refusal(["redis.ca_file=ca.pem"], "must begin with rediss://", [["redis.url=rediss://a:6379/0"]]),
    Refusal(
        ["eval.patience=2"], "set eval.every, or eval.patience to 0", [["eval.every=5"], ["eval.patience=0"]]
    ),
    Refusal(["eval.k=4"], "raise the latter to 4", [["eval.samples_per_problem=4"]]),
]  # fmt: skip


def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text("model: {path: a/b}\n")
    return path


@pytest.mark.parametrize("refusal", CONFIG, ids=lambda refusal: " ".join(refusal.overrides)[:60])
def test_a_refused_config_is_accepted_once_the_remedy_is_followed(tmp_path: Path, refusal: Refusal) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(base(tmp_path), refusal.overrides)
    assert refusal.because in str(caught.value)
    for remedy in refusal.remedies:
        load_config(base(tmp_path), [*refusal.overrides, *remedy])


class Text(NamedTuple):
    """A text of a process: where it is, a part of it, how far the run has come, and what it says to set."""

    file: str
    says: str
    stage: str
    overrides: list[str]


BEFORE, RECORDED, TRAINED = "before", "recorded", "trained"
ON_A_RUN = [
    Text("learner/value_pretraining/gate_remedies.py", "raise value_pretraining.max_steps to", RECORDED,
         ["value_pretraining.max_steps=200"]),
    Text("learner/value_pretraining/gate_remedies.py", "set value_pretraining.learning_rate to", RECORDED,
         ["value_pretraining.learning_rate=6e-4"]),
    Text("learner/value_pretraining/gate_remedies.py", "raise value_pretraining.num_trajectories to", RECORDED,
         ["value_pretraining.num_trajectories=8192"]),
    Text("learner/value_pretraining/gate_remedies.py", "raise value_pretraining.held_out_fraction to", RECORDED,
         ["value_pretraining.held_out_fraction=0.25"]),
    Text("learner/value_pretraining/gate_remedies.py", "lower value_pretraining.min_explained_variance to", RECORDED,
         ["value_pretraining.min_explained_variance=-0.07"]),
    Text("learner/value_pretraining/gate_remedies.py", "set value_pretraining.min_explained_variance to", RECORDED,
         ["value_pretraining.min_explained_variance=-10"]),
    Text("learner/value_pretraining/gate_remedies.py", "for an interval: raise value_pretraining.num_trajectories",
         RECORDED,
         ["value_pretraining.num_trajectories=8192"]),
    Text("learner/value_pretraining/stage.py", "change value_pretraining.held_out_fraction or num_trajectories",
         RECORDED,
         ["value_pretraining.held_out_fraction=0.25"]),
    Text("learner/supply/prompts.py", "set rl.difficulty.enabled to false",
         RECORDED, ["rl.difficulty.enabled=false"]),
    Text("learner/supply/dynamic_sampling.py", "raise rl.dynamic_sampling_max_batches",
         TRAINED, ["rl.dynamic_sampling=rewards", "rl.dynamic_sampling_max_batches=8"]),
    Text("learner/engine/deepspeed_engine.py", "training diverged; lower ",
         RECORDED, ["value_pretraining.learning_rate=1e-5"]),
    Text("learner/engine/deepspeed_engine.py", "training diverged; lower ", TRAINED,
         ["rl.actor_learning_rate=1e-6", "rl.critic_learning_rate=1e-6"]),
    Text("learner/cold_start/reward_model.py", "lower reward_model.learning_rate",
         TRAINED, ["reward_model.learning_rate=1e-5"]),
    Text("learner/cold_start/preference_pairs.py", "set reward_model.prefix_fraction=0", TRAINED,
         ["reward_model.prefix_fraction=0"]),
    Text("common/tasks/lengths.py", "set generator.max_model_len={}", TRAINED,
         ["generator.max_model_len=9000", "learner.micro_batch_tokens=9000"]),
    Text("common/tasks/lengths.py", " and learner.micro_batch_tokens to at least as much", TRAINED,
         ["generator.max_model_len=9000", "learner.micro_batch_tokens=9000"]),
    Text("common/tasks/lengths.py", "or leave them out by task.overlong=skip", TRAINED, ["task.overlong=skip"]),
    Text("learner/engine/distributed.py", "set learner.device=auto or cpu", TRAINED, ["learner.device=cpu"]),
    Text("learner/buffer/bridge.py", "set security.curve=always", TRAINED, ["security.curve=always"]),
    Text("learner/supply/collect.py", "raise redis.maxmemory_mib", TRAINED, ["redis.maxmemory_mib=9000"]),
    Text("common/store/redis_connection.py", "raise it (redis.maxmemory_mib)", TRAINED, ["redis.maxmemory_mib=9000"]),
    Text("common/store/redis_connection.py", "set redis.url, or leave redis.url empty", TRAINED,
         ["redis.url=redis://127.0.0.1:6379/0"]),
    Text("common/store/redis_connection.py", "give redis.username", TRAINED,
         ["redis.username=me", "redis.password_file=secret"]),
    Text("common/transport/keys.py", "set security.curve=never", TRAINED, ["security.curve=never"]),
    Text("common/transport/sockets.py", "choose another port in transport.endpoints", TRAINED,
         ["transport.endpoints=[tcp://127.0.0.1:5999]"]),
    Text("deploy/processes/redis_server.py", "or set redis.url", TRAINED, ["redis.url=redis://127.0.0.1:6379/0"]),
    *(
        Text(f"learner/{name}.py", "choose another model.path", BEFORE, ["model.path=c/d"])
        for name in (
            "export", "models/model_loading", "packing_proof/proof", "models/saving", "models/wire_weights",
        )
    ),
    Text("learner/models/model_loading.py",
         "set algorithm.advantage_estimator=leave_one_out and value_pretraining.num_traj",
         BEFORE, ["algorithm.advantage_estimator=leave_one_out", "value_pretraining.num_trajectories=0"]),
    Text("learner/critic_model/critic_vocabulary.py",
         "choose a model with the same tokenizer for critic.model, or null", BEFORE, ["critic.model=c/d"]),
    Text("learner/critic_model/critic_vocabulary.py", "choose another critic.init", BEFORE, ["critic.init=policy"]),
    Text("learner/models/value_head.py", "give critic.head and its bins as the folder has them", BEFORE,
         ["critic.head=two_hot"]),
    Text("learner/models/surprise.py", "set it to true", BEFORE, ["critic.sees_log_probs=true"]),
    Text("learner/models/surprise.py", "or take a new critic by critic.init=policy", BEFORE, ["critic.init=policy"]),
    Text("learner/models/model_loading.py", "set generator.max_model_len to at most",
         BEFORE, ["generator.max_model_len=400"]),
    Text("learner/models/model_loading.py", "set learner.gradient_checkpointing = false", TRAINED,
         ["learner.gradient_checkpointing=false"]),
    Text("generator/vllm_engine/engine_start.py", "lower generator.max_model_len",
         BEFORE, ["generator.max_model_len=400"]),
    Text("generator/vllm_engine/engine_start.py", "raise generator.kv_cache_gib",
         TRAINED, ["generator.kv_cache_gib=9"]),
    Text("generator/vllm_engine/engine_start.py", "lower generator.max_in_flight",
         TRAINED, ["generator.max_in_flight=9"]),
    Text("learner/evaluation/held_out_prompts.py", "lower eval.num_problems_during_training", TRAINED,
         ["eval.num_problems_during_training=16"]),
    Text("common/config/sampling_checks.py", "set eval.samples_per_problem and eval.k to 1", TRAINED,
         ["eval.samples_per_problem=1", "eval.k=1"]),
    Text("common/tasks/dataset.py", "set task.options.answer_after", BEFORE, ["task.options.answer_after='####'"]),
    Text("deploy/demo.py", "to train that, set model.path=", BEFORE, ["model.path=c/d"]),
    Text("learner/__main__.py", "or set learner.num_ranks", BEFORE, ["learner.num_ranks=2"]),
    Text("learner/cold_start/starting_point.py", "name a model in sft.init", BEFORE, ["sft.init=c/d"]),
    Text("learner/cold_start/sft.py", "sft.phases is empty", BEFORE, ["model.path=c/d"]),
    Text("learner/cold_start/sft.py", "set sft.output to another folder", TRAINED, ["sft.output=elsewhere"]),
    Text("learner/cold_start/reward_model.py", "set reward_model.output", TRAINED, ["reward_model.output=elsewhere"]),
    Text("learner/cold_start/preference_pairs.py", "set reward_model.rollouts to a recorded", TRAINED,
         ["reward_model.rollouts=recorded.msgpack"]),
    Text("common/store/access.py", "give redis.url=", TRAINED, ["redis.url=redis://127.0.0.1:6379/0"]),
    Text("common/tasks/code.py", "set task.options.require_isolation=false", TRAINED,
         ["task.options.require_isolation=false"]),
    Text("common/tasks/__init__.py", "set task.options.prompt_template", BEFORE,
         ["task.options.prompt_template='{question}'"]),
    Text("common/tasks/prompts/columns.py", "set task.options.", BEFORE, ["task.options.question_column=problem"]),
    Text("common/tasks/rows_task.py", "set task.options.held_out_path", BEFORE, ["task.options.held_out_fraction=0.2"]),
]  # fmt: skip


def come_to(stage: str, path: Path) -> None:
    """The run folder as a run leaves it that has come so far."""
    folder = RunFolder(path.parent)
    if stage != BEFORE:
        folder.value_pretraining.mkdir()
        (folder.value_pretraining / "trajectories.msgpack").write_bytes(b"recorded")
    if stage == TRAINED:
        folder.trained_log.write_text("{}\n")


@pytest.mark.parametrize("text", ON_A_RUN, ids=lambda text: f"{text.file} {text.says}"[:80])
def test_the_same_run_takes_what_a_text_says_to_set(tmp_path: Path, text: Text) -> None:
    assert text.says in joined_source(ROOT / text.file)
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(config_of(tmp_path / "runs", "r")))
    come_to(text.stage, write_config(load_config(path)))
    now = load_config(path, text.overrides)
    assert load_config(write_config(now)) == now


def joined_source(path: Path) -> str:
    """Every string literal of the source, adjacent ones as one; a placeholder reads {}."""
    return "\n".join(literals(path))


def literals(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = (str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
            found.append("".join(parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


FIELDS = sorted((field.name for field in config_fields() if "[]" not in field.name), key=len, reverse=True)
VERB = r"\b(?:set|raise|lower|change|choose|give|increase|reduce)\s+(?:\w+\s+){0,3}?"
REMEDY = re.compile(rf"{VERB}({'|'.join(map(re.escape, FIELDS))})\b")
# Texts that are followed otherwise than by a run that has begun.
NOT_ON_A_RUN = {
    "common/trackers/wanted.py": "`test_metric_sinks.py` follows it, and trackers shape nothing of a run",
    "common/config/checks.py": "CONFIG follows them",
    "common/config/critic_model_checks.py": "as above",
    "common/config/reward_checks.py": "as above",
    "deploy/plan/": "advice about a config before it starts",
    "deploy/placement/": "as above; `test_smallest_change.py` follows it",
    "deploy/check/": "as above; the tests of each check follow what it says",
    "generator/check/": "as above",
    "learner/check/": "as above",
    "deploy/slurm/": "before anything is submitted; `test_cluster.py` follows what can be followed",
    "deploy/run/run_config.py": "a folder that can't be written is no run yet: the next start is under another one",
}


def remedies_in(path: Path) -> set[str]:
    """Settings that texts of a source say to change; docstrings are no texts."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, documented)]
    docs = {ast.get_docstring(node, clean=False) for node in nodes}
    return {field for text in literals(path) if text not in docs for field in REMEDY.findall(text)}


def test_no_remedy_is_left_out() -> None:
    """A new text that says to set something needs a row in ON_A_RUN that does it."""
    covered = [(text.file, override) for text in ON_A_RUN for override in text.overrides]
    missing = []
    for package in ("learner", "generator", "common", "deploy"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith(tuple(NOT_ON_A_RUN)):
                done = [text for file, text in covered if file == name] + ["run.name"]  # which is another run
                fields = {field for field in remedies_in(path) if not any(text.startswith(field) for text in done)}
                missing += [f"{name}: {field}" for field in sorted(fields)]
    assert missing == []


# What the gate says


STAGE = ValuePretrainingConfig(num_trajectories=512)


def counts(right: int, wrong: int) -> Counts:
    outcomes = {**dict.fromkeys(OUTCOMES, 0), "correct": right, "wrong": wrong}
    return Counts(outcomes, 0, (right + wrong) // 8, 1, 1, 0.0, 10.0, 20)


def overrides_in(text: str) -> list[str]:
    """``raise a.b to 3`` and ``a.b=3`` in a text, as overrides."""
    found = re.findall(r"((?:value_pretraining|rl)\.\w+)(?: to |=)(-?[\d.]+(?:e-?\d+)?)", text)
    return [f"{name}={value.rstrip('.')}" for name, value in found]


def test_too_few_of_one_kind_names_what_would_do(tmp_path: Path) -> None:
    text = too_few(counts(3, 61), counts(24, 488), STAGE, 8, 0.375)
    assert text is not None
    assert text.startswith("value pretraining: 3 of 64 held-out responses are right.")
    assert "now 24 of 512, 4.7 %" in text.replace("4.7%", "4.7 %")
    ways = overrides_in(text)
    assert "value_pretraining.held_out_fraction=0.375" in ways
    (wanted,) = (int(way.partition("=")[2]) for way in ways if "num_trajectories" in way)
    assert wanted % 8 == 0
    # Held out are 12.5 % of them, right 4.7 %: enough, and by two standard deviations.
    assert wanted * 0.125 * 24 / 512 - 2 * NEEDED_OF_EACH**0.5 >= NEEDED_OF_EACH
    for way in ways:
        load_config(base(tmp_path), ["value_pretraining.num_trajectories=512", way])


def test_enough_of_both_or_no_gate_asks_for_nothing() -> None:
    assert too_few(counts(20, 44), counts(160, 352), STAGE, 8, None) is None
    assert (
        too_few(counts(0, 64), counts(0, 512), STAGE.model_copy(update={"min_explained_variance": -10.0}), 8, None)
        is None
    )


def test_where_none_is_right_no_number_is_made_up() -> None:
    text = too_few(counts(0, 64), counts(0, 512), STAGE, 8, None)
    assert text is not None
    assert overrides_in(text) == ["value_pretraining.min_explained_variance=-10"]
    assert "under another run.name" in text


def decision(**values: object) -> dict[str, object]:
    given = {"explained_variance": -0.061, "low": -0.3, "high": 0.2, "cut_short": False, "certain": True,
             "stopped_because": "max_steps = 100 reached",
             "held_out": {"num_responses": 64, "num_prompts": 8, "num_right": 22}}  # fmt: skip
    return {**given, **values}


@pytest.mark.parametrize("cut", [True, False])
def test_a_failed_gate_names_ways_that_a_config_takes(tmp_path: Path, cut: bool) -> None:
    text = failed(decision(cut_short=cut), STAGE)
    assert "-0.061 (90 %: -0.30 to 0.20), measured on 64 responses to 8 prompts, 22 of them right" in text
    ways = overrides_in(text)
    assert ("value_pretraining.max_steps=200" in ways) == cut
    assert "value_pretraining.min_explained_variance=-0.07" in ways
    assert len(ways) >= 3
    for way in ways:
        load_config(base(tmp_path), ["value_pretraining.num_trajectories=512", way])


def test_an_undefined_figure_is_said_so(tmp_path: Path) -> None:
    text = failed(decision(explained_variance=None, low=None, high=None), STAGE)
    assert "undefined (held-out returns do not vary)" in text
    (gate,) = (way for way in overrides_in(text) if "min_explained_variance" in way)
    threshold = load_config(base(tmp_path), [gate]).value_pretraining.min_explained_variance
    assert verdict(None, None, threshold)["passed"]


def test_a_cap_that_came_too_early_names_the_command(tmp_path: Path) -> None:
    text = cut_short(STAGE, "runs/r")
    assert "--start-over rl value_pretraining.max_steps=200" in text
    load_config(base(tmp_path), overrides_in(text))


def test_an_interval_around_the_gate_says_how_much_would_tell(tmp_path: Path) -> None:
    text = uncertain(decision(explained_variance=0.4, low=0.25, high=0.55, certain=False), STAGE, 8)
    assert text is not None
    wanted = int(re.findall(r"num_trajectories = (\d+)", text)[0])
    assert wanted == 1152  # (0.15 / 0.1)² times as many
    load_config(base(tmp_path), [f"value_pretraining.num_trajectories={wanted}"])
    assert uncertain(decision(), STAGE, 8) is None
