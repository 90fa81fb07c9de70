"""The config tree: loading, overrides, errors that name field, value and remedy, and its documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.paths import ROOT
from vcppo.common.config import (
    ConfigError,
    VcppoConfig,
    config_fields,
    config_warnings,
    dump_config,
    load_config,
    render_markdown,
)
from vcppo.common.config.loading import as_overrides, parse_override

DOCS = ROOT / "docs" / "configuration.md"


@pytest.fixture
def run_yaml(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("model: {path: some/model}\nrl: {batch_size: 64, actor_learning_rate: 3e-5}\n")
    return path


def problems_of(path: Path, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert caught.value.exit_code == 2
    return caught.value.problems


def test_file_then_overrides(run_yaml: Path) -> None:
    config = load_config(run_yaml, ["rl.num_steps=7", "task.options.K=16", "rl.num_steps=8", "redis.url="])
    assert config.model.path == "some/model"
    assert (config.rl.batch_size, config.rl.num_steps) == (64, 8)
    assert config.rl.actor_learning_rate == 3e-5  # which YAML 1.1 would read as text
    assert config.task.options == {"K": 16}
    assert config.redis.url is None


def test_overrides_reach_into_lists(run_yaml: Path) -> None:
    config = load_config(run_yaml, ["sft.init=m", "sft.phases=[{steps: 3}, {steps: 4}]", "sft.phases.1.steps=9"])
    assert [phase.steps for phase in config.sft.phases] == [3, 9]
    assert problems_of(run_yaml, "sft.phases=[{steps: 3}]", "sft.phases.1.steps=9") == (
        "command line: sft.phases.1.steps: sft.phases has 1 items: '1' is none of them",
    )


def test_words_of_yaml_1_1_stay_words(run_yaml: Path) -> None:
    config = load_config(run_yaml, ["task.options={country: no, when: 2026-01-02, clock: 12:30:00}"])
    assert config.task.options == {"country": "no", "when": "2026-01-02", "clock": "12:30:00"}


def test_dump_then_load_is_identity(run_yaml: Path, tmp_path: Path) -> None:
    overrides = ["algorithm.old_log_probs=behaviour", "task.options={a: [1, {b: 'yes'}], c: '3e-5'}", "run.folder=x/y"]
    config = load_config(run_yaml, overrides)
    resolved = tmp_path / "config.yaml"
    resolved.write_text(dump_config(config))
    assert load_config(resolved, []) == config


# Whatever YAML can say in a free mapping (task.options) and a YAML file can hold.
_TEXT = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=12)
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXT
)
_OPTIONS = st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), _SCALARS | st.lists(_SCALARS, max_size=3))


@given(options=_OPTIONS)
def test_overrides_round_trip(options: dict[str, Any]) -> None:
    parsed = {}
    for text in as_overrides({"task": {"options": options}} if options else {}):
        override = parse_override(text)
        assert override.path[:2] == ("task", "options")
        parsed[override.path[2]] = override.value
    assert parsed == options


@settings(max_examples=20)
@given(
    options=_OPTIONS, steps=st.integers(1, 10**9), rate=st.floats(1e-12, 1.0), name=st.none() | st.just("redis://h/0")
)
def test_dump_round_trips_any_values(options: dict[str, Any], steps: int, rate: float, name: str | None) -> None:
    tree = {
        "model": {"path": "m"},
        "task": {"options": options},
        "rl": {"num_steps": steps, "actor_learning_rate": rate},
        "redis": {"url": name},
    }
    config = VcppoConfig.model_validate(tree)
    overrides = as_overrides(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json"))))
    assert VcppoConfig.model_validate(_from_overrides(overrides)) == config


def _from_overrides(texts: list[str]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for text in texts:
        override = parse_override(text)
        node = tree
        for key in override.path[:-1]:
            node = node.setdefault(key, {})
        node[override.path[-1]] = override.value
    return tree


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["rl.batch_siz=64"], "command line: rl.batch_siz = 64: unknown field; did you mean rl.batch_size?"),
        (["lerner.num_ranks=2"], "unknown field; did you mean learner?"),
        (["max_staleness=0"], "unknown field; did you mean rl.max_staleness?"),
        (["broadcast.canary_tolerance=1"], "broadcast.canary_tolerance = 1: this setting is gone: take it out. "),
        (["rl.zzz=1"], "unknown field; known here: actor_freeze, "),
        (["sft.init=m", "sft.phases=[{steps: 1, stile: {}}]"], "did you mean sft.phases.style?"),
        (
            ["rl.batch_size=many"],
            "command line: rl.batch_size = 'many': must be a valid integer (Trajectories per step",
        ),
        (["rl.max_staleness=true"], "rl.max_staleness = True: must be a valid integer"),
        (["sampling.temperature=0"], "sampling.temperature = 0: must be greater than 0 (Softmax temperature"),
        (["sampling.temperature=.nan"], "sampling.temperature = '.nan': '.nan' is no finite number"),
        (["broadcast.backend=mpi"], "broadcast.backend = 'mpi': must be 'auto', 'gloo' or 'nccl'"),
        (
            ["learner.offload.optimizer=cpu"],
            "learner.zero_stage = 0: set learner.zero_stage to 1 or more",
        ),
        (
            ["learner.offload.parameters=cpu", "learner.zero_stage=2"],
            "learner.offload.parameters = cpu: DeepSpeed offloads parameters at ZeRO stage 3",
        ),
        (
            ["learner.gradient_checkpointing_every=2"],
            "learner.gradient_checkpointing_every = 2: nothing is recomputed",
        ),
        (["learner.offload.optimizer=nvme"], "learner.offload.optimizer = 'nvme': must be 'none' or 'cpu'"),
        (["rl=3"], "rl = 3: must be a section with fields of its own"),
        (["run.name=../up"], "run.name = '../up'"),
        (["rl.batch_size"], "'rl.batch_size' is no override: write section.field=value"),
        (["=3"], "is no override"),
        (["rl.batch_size=[1"], "is not YAML"),
        (["model.path.x=1"], "command line: model.path.x: model.path is a value ('some/model'), not a section"),
    ],
)
def test_bad_values_give_one_clear_line(run_yaml: Path, overrides: list[str], expected: str) -> None:
    problems = problems_of(run_yaml, *overrides)
    assert len(problems) == 1
    assert expected in problems[0]
    assert "\n" not in problems[0]


def test_problems_in_the_file_name_the_file(run_yaml: Path) -> None:
    run_yaml.write_text("rl: {batch_size: -1}\n")
    missing, range_problem = sorted(problems_of(run_yaml), key=lambda line: "rl." in line)
    assert missing.startswith(f"{run_yaml}: model.path is missing: Hugging Face id or folder")
    assert range_problem.startswith(f"{run_yaml}: rl.batch_size = -1: must be greater than or equal to 1")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rl: {batch_size: 1, batch_size: 2}", "'batch_size' is given twice, in lines 1 and 1: keep one"),
        ("rl: [", "is not valid YAML"),
        ("- 1\n- 2\n", "holds a list: the top level must be sections"),
        ("", "model.path is missing"),
        ("model: !!python/object/apply:os.system [true]", "is not valid YAML"),
    ],
)
def test_bad_files(run_yaml: Path, text: str, expected: str) -> None:
    run_yaml.write_text(text)
    assert expected in problems_of(run_yaml)[0]


def test_no_file_and_missing_file(run_yaml: Path) -> None:
    with pytest.raises(ConfigError, match="no config file: give one with -c"):
        load_config(None, [])
    with pytest.raises(ConfigError, match=r"there is no such file; did you mean .*run\.yaml\?"):
        load_config(run_yaml.with_name("runn.yaml"), [])
    with pytest.raises(ConfigError, match="can't be read"):
        load_config(run_yaml.parent, [])


GRPO = "algorithm.advantage_estimator=group_mean"


@pytest.mark.parametrize(
    ("overrides", "fields"),
    [
        (["rl.batch_size=100"], ["rl.batch_size = 100", "rl.group_size = 8", "96 or 104"]),
        (["rl.batch_size=8", "algorithm.num_mini_batches=9"], ["algorithm.num_mini_batches = 9", "rl.batch_size = 8"]),
        (
            ["learner.batch_deadline_seconds=60"],
            ["learner.batch_deadline_seconds = 60", "generator.lease_seconds = 60"],
        ),
        (["sampling.top_p=0.9"], ["sampling.top_p = 0.9", "ratio is not 1", "set eval.top_p"]),
        (["sampling.top_k=5"], ["sampling.top_k = 5", "set eval.top_k"]),
        (["sampling.top_k=5", "algorithm.old_log_probs=behaviour"], ["sampling.top_k = 5", "set sampling.top_k to 0"]),
        (["generator.engine_options={generation_config: auto}"], ["generation_config", "leave it out"]),
        (["generator.engine_options={logits_processors: [x]}"], ["logits_processors", "another distribution"]),
        (["generator.engine_options={skip_tokenizer_init: false}"], ["skip_tokenizer_init", "leave it out"]),
        (["generator.engine_options={max_num_batched_tokens: 64}"], ["max_num_batched_tokens = 64", "raise it to 68"]),
        (
            ["generator.engine_options={max_num_batched_tokens: 256, enable_chunked_prefill: false}"],
            ["max_num_batched_tokens = 256", "generator.max_model_len = 512"],
        ),
        (["sampling.stop=['']"], ["sampling.stop: ''", "leave it out"]),
        (["sampling.stop=[a, a]"], ["sampling.stop: 'a' is given twice"]),
        ([f"sampling.stop=[{', '.join(f's{i}' for i in range(17))}]"], ["sampling.stop: 17 strings", "at most 16"]),
        ([f"sampling.stop=[{'x' * 257}]"], ["sampling.stop: a string of 257 characters"]),
        (['sampling.stop=["a\\uFFFD"]'], ["sampling.stop", "U+FFFD", "sampling.stop_token_ids"]),
        ([f"sampling.stop_token_ids={list(range(257))}"], ["sampling.stop_token_ids: 257 tokens"]),
        (
            ["eval.temperature=0", "eval.samples_per_problem=2"],
            ["eval.temperature = 0", "set eval.samples_per_problem and eval.k to 1"],
        ),
        (
            ["algorithm.old_log_probs=behaviour", "algorithm.importance_truncation=2"],
            ["algorithm.importance_truncation = 2", "proximal", "null"],
        ),
        (
            ["algorithm.old_log_probs=behaviour", "algorithm.rejection=token"],
            ["algorithm.rejection = token", "algorithm.old_log_probs = behaviour", "proximal", "null"],
        ),
        (["algorithm.rejection_low=0.1"], ["algorithm.rejection_low = 0.1", "algorithm.rejection = null", "token"]),
        (
            ["algorithm.importance_truncation=null", "algorithm.importance_level=geometric"],
            ["algorithm.importance_level = geometric", "algorithm.importance_truncation = null"],
        ),
        (
            ["algorithm.objective=cispo", "algorithm.dual_clip=3"],
            ["algorithm.dual_clip = 3", "algorithm.objective = cispo"],
        ),
        (
            ["algorithm.objective=dis", "algorithm.dual_clip=3"],
            ["algorithm.dual_clip = 3", "algorithm.objective = dis"],
        ),
        (["algorithm.dual_clip=1.1"], ["algorithm.dual_clip = 1.1", "algorithm.clip_high = 1.2", "2.2"]),
        (["algorithm.kl_estimator=k2"], ["algorithm.kl_estimator = k2", "algorithm.kl_coefficient = 0"]),
        (["algorithm.kl_in=reward"], ["algorithm.kl_in = reward", "algorithm.kl_coefficient = 0"]),
        (
            ["algorithm.reference_refresh_steps=5"],
            ["algorithm.reference_refresh_steps = 5", "algorithm.kl_coefficient = 0"],
        ),
        (
            ["algorithm.entropy_target=0.2", "algorithm.entropy_coefficient=0.01"],
            ["algorithm.entropy_target = 0.2", "algorithm.entropy_coefficient = 0.01", "null"],
        ),
        (["algorithm.entropy_step=0.01"], ["algorithm.entropy_step = 0.01", "algorithm.entropy_target = null"]),
        (["algorithm.entropy_limit=0.2"], ["algorithm.entropy_limit = 0.2", "algorithm.entropy_target = null"]),
        (
            ["algorithm.entropy_target=0.2", "algorithm.entropy_step=0.2"],
            ["algorithm.entropy_step = 0.2", "algorithm.entropy_limit = 0.1", "0.005"],
        ),
        (["algorithm.advantage_level=turn", "algorithm.gamma=0.99"], ["algorithm.gamma = 0.99", "turn"]),
        (["algorithm.advantage_level=segment", "algorithm.gamma=0.99"], ["algorithm.gamma = 0.99", "a segment"]),
        (["algorithm.segment_cutpoints=3"], ["algorithm.segment_cutpoints = 3", "no effect", "token"]),
        ([GRPO, "algorithm.advantage_level=turn"], ["algorithm.advantage_level = turn", "no critic", "token"]),
        (
            ["algorithm.advantage_estimator=reinforce_plus_plus", "algorithm.whiten_advantages=false"],
            ["algorithm.whiten_advantages = false", "reinforce_plus_plus", "null"],
        ),
        (
            ["algorithm.advantage_estimator=reinforce_plus_plus_baseline", "rl.group_size=1"],
            ["rl.group_size = 1", "reinforce_plus_plus_baseline", "2 or more"],
        ),
        (
            ["algorithm.importance_truncation=null", "algorithm.importance_normalised=true"],
            ["algorithm.importance_normalised = true", "algorithm.importance_truncation = null", "false"],
        ),
        (["task.reward_correct=-1"], ["task.reward_correct = -1", "task.reward_wrong = -1"]),
        ([GRPO, "rl.group_size=1"], ["rl.group_size = 1", "group_mean", "2 or more"]),
        ([GRPO, "algorithm.truncation=bootstrap"], ["algorithm.truncation = bootstrap", "no critic"]),
        ([GRPO, "algorithm.length_adaptive_alpha=0.05"], ["algorithm.length_adaptive_alpha = 0.05", "no critic"]),
        ([GRPO, "value_pretraining.num_trajectories=64"], ["value_pretraining.num_trajectories = 64", "set it to 0"]),
        (["value_pretraining.num_trajectories=0"], ["critic.init = value_pretrained", "num_trajectories", "policy"]),
        (["value_pretraining.num_trajectories=4095"], ["num_trajectories = 4095", "rl.group_size = 8", "4088 or 4096"]),
        (["value_pretraining.held_out_fraction=0.001"], ["held_out_fraction = 0.001", "512 prompts"]),
        (["value_pretraining.batch_size=4000"], ["value_pretraining.batch_size = 4000", "3584"]),
        (["sft.phases=[{steps: 1}]"], ["sft.architecture", "sft.init"]),
        (["sft.init=m", "sft.architecture={a: 1}"], ["sft.architecture", "sft.init = m"]),
        (["sampling.max_response_tokens=512"], ["sampling.max_response_tokens = 512", "generator.max_model_len = 512"]),
        (["learner.micro_batch_tokens=511"], ["learner.micro_batch_tokens = 511", "generator.max_model_len = 512"]),
        (["transport.max_message_mib=0.001"], ["transport.max_message_mib = 0.001", "generator.max_model_len = 512"]),
        (["transport.spool_memory_mib=1"], ["transport.spool_memory_mib = 1", "transport.max_message_mib = 64"]),
        (["generator.lease_seconds=10"], ["generator.lease_seconds = 10", "generator.heartbeat_seconds = 5", "15"]),
        (["generator.engine_options={dtype: half}"], ["generator.engine_options.dtype", "set generator.dtype instead"]),
        (["generator.engine_options={logprobs_mode: x}"], ["generator.engine_options.logprobs_mode", "leave it out"]),
        (["broadcast.backend=nccl", "launcher.share_gpus=true"], ["NCCL takes one process a GPU", "auto or gloo"]),
        (["broadcast.backend=nccl", "learner.device=cpu"], ["broadcast.backend = nccl", "learner.device = cpu"]),
        (["redis.url=localhost:6379"], ["redis.url = 'localhost:6379'", "redis://"]),
        (["transport.endpoints=[tcp://10.0.0.7:5755]"], ["transport.endpoints", "10.0.0.7", "set redis.url"]),
        (["transport.endpoints=[tcp://127.0.0.1]"], ["transport.endpoints", "tcp://host:port"]),
        (["transport.endpoints=[tcp://127.0.0.1:99999]"], ["transport.endpoints", "1-65535"]),
        (["transport.endpoints=[ipc://a, ipc://a]"], ["transport.endpoints", "given twice"]),
        (["eval.k=4"], ["eval.k = 4", "eval.samples_per_problem = 1", "raise"]),
    ],
)
def test_cross_field_problems_name_fields_values_and_remedy(
    run_yaml: Path, overrides: list[str], fields: list[str]
) -> None:
    problems = problems_of(run_yaml, *overrides)
    assert len(problems) == 1, problems
    assert [each for each in fields if each not in problems[0]] == []
    assert "\n" not in problems[0]


def test_all_cross_field_problems_come_at_once(run_yaml: Path) -> None:
    assert len(problems_of(run_yaml, "rl.batch_size=100", "eval.k=4", "generator.lease_seconds=10")) == 3


@pytest.mark.parametrize(
    "overrides",
    [
        ["algorithm.old_log_probs=behaviour"],  # the default correction goes with proximal
        ["eval.top_p=0.9", "eval.top_k=20", "eval.temperature=0.6"],
        ["eval.temperature=0"],
        ['sampling.stop=["\\n\\n", "é</answer>"]', "sampling.stop_token_ids=[0, 5]", "sampling.stop_in_text=true"],
        [GRPO],  # as does the default of value pretraining with gae
        ["critic.init=policy", "value_pretraining.num_trajectories=0"],
        ["redis.url=redis://10.0.0.1/0", "transport.endpoints=[tcp://10.0.0.7:5755]"],
        ["learner.num_ranks=2", "learner.zero_stage=3"],
        ["rl.max_staleness=0"],
    ],
)
def test_what_belongs_together_is_accepted(run_yaml: Path, overrides: list[str]) -> None:
    config = load_config(run_yaml, overrides)
    assert VcppoConfig.model_validate(yaml.safe_load(dump_config(config))) == config


def test_warnings_for_what_is_probably_not_meant(run_yaml: Path) -> None:
    suspicious = [
        "sampling.stop=['\\n', 'Q', 'aQ']",
        "rl.straggler=drop",
        "rl.max_staleness=0",
        "algorithm.clip_high=0.1",
    ]
    text = "\n".join(config_warnings(load_config(run_yaml, suspicious)))
    assert "generator.max_in_flight = 64" in text
    assert "rl.straggler = drop" in text
    assert "double quotes" in text
    assert "'aQ' never ends a response: 'Q' is in it" in text
    assert "algorithm.clip_high = 0.1" in text


@pytest.mark.parametrize(
    ("estimator", "warned"),
    [
        ("gae", "the critic's values lean to the middle"),
        ("reinforce_plus_plus", "so a group of one reward does have a signal"),
        ("reinforce_plus_plus_baseline", "so a group of one reward does have a signal"),
        ("group_mean", ""),
        ("leave_one_out", ""),
    ],
)
def test_dynamic_sampling_is_warned_of_where_what_it_leaves_out_has_a_signal(
    run_yaml: Path, estimator: str, warned: str
) -> None:
    without_critic = [] if estimator == "gae" else [GRPO, f"algorithm.advantage_estimator={estimator}"]
    text = "\n".join(config_warnings(load_config(run_yaml, ["rl.dynamic_sampling=rewards", *without_critic])))
    assert ("rl.dynamic_sampling = rewards with" in text) == bool(warned)
    assert warned in text


@pytest.mark.parametrize(
    ("where", "estimator", "warned"),
    [("loss", None, ""), ("loss", "k1", "k2 or k3 hold pi back"), ("loss", "k2", ""), ("reward", None, ""),
     ("reward", "k1", ""), ("reward", "k3", "k1 does")],
)  # fmt: skip
def test_the_kl_estimator_that_holds_back_is_the_default_and_the_others_are_warned_of(
    run_yaml: Path, where: str, estimator: str | None, warned: str
) -> None:
    given = [] if estimator is None else [f"algorithm.kl_estimator={estimator}"]
    config = load_config(run_yaml, [f"algorithm.kl_in={where}", "algorithm.kl_coefficient=0.1", *given])
    assert estimator or config.algorithm.kl_estimator == {"loss": "k3", "reward": "k1"}[where]
    lines = [line for line in config_warnings(config) if "kl_estimator" in line]
    assert (warned in lines[0]) if warned else not lines


def test_every_field_is_documented() -> None:
    fields = list(config_fields())
    assert len({field.name for field in fields}) == len(fields) > 100
    assert [field.name for field in fields if len(field.description) < 8] == []
    assert next(f for f in fields if f.name == "algorithm.clip_low").type == "float > 0, < 1"
    assert next(f for f in fields if f.name == "redis.url").default == "null"


def test_the_page_is_up_to_date() -> None:
    assert DOCS.read_text() == render_markdown(), "run: python -m vcppo.common.config > docs/configuration.md"


def test_sections_are_frozen(run_yaml: Path) -> None:
    config = load_config(run_yaml, [])
    with pytest.raises(ValueError):
        config.rl.batch_size = 1  # type: ignore[misc]


def test_an_endpoint_beyond_the_loopback_has_an_address_and_is_warned_of(run_yaml: Path) -> None:
    for host in ("0.0.0.0", "::"):  # noqa: S104  (they are refused)
        (problem,) = problems_of(run_yaml, f"task.endpoint_host='{host}'")
        assert f"task.endpoint_host = '{host}': agents are told this address" in problem
    (problem,) = problems_of(run_yaml, "task.endpoint_host=http://here")
    assert "task.endpoint_host" in problem
    for host, warned in (("10.0.0.7", True), ("fd00::2", True), ("agents.lan", True), ("::1", False)):
        warnings = config_warnings(load_config(run_yaml, [f"task.endpoint_host='{host}'"]))
        assert ["unencrypted" in each for each in warnings if "task.endpoint_host" in each] == [True] * warned


def test_what_weights_go_by() -> None:
    """Both ends decide alike. NCCL would refuse two processes on one GPU, so sharing goes without it."""

    def by(backend: str, share: bool) -> list[str]:
        tree = {"model": {"path": "m"}, "broadcast": {"backend": backend}, "launcher": {"share_gpus": share}}
        config = VcppoConfig.model_validate(tree)
        return [config.transfer_backend(on_cuda=on_cuda) for on_cuda in (False, True)]

    assert by("auto", False) == ["gloo", "nccl"]
    assert by("auto", True) == ["gloo", "gloo"]
    assert by("gloo", False) == ["gloo", "gloo"]
    assert by("nccl", False) == ["nccl", "nccl"]
