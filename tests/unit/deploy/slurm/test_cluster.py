"""What does not fit a cluster is found before it is submitted, by field, value and remedy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.deploy.slurm.test_batch_script import REQUEST
from tests.unit.rig.fake_run import config_of
from vcppo.common.config import VcppoConfig, dump_config, load_config
from vcppo.deploy.slurm.cluster import (
    Partition,
    cluster_problems,
    config_problems,
    folder_problem,
    parse_partitions,
    parse_time,
)

SINFO = "gpu|8|gpu:a100:8(S:0-1)|96+|2-00:00:00\ncpu|4|(null)|64|infinite\ncpu|2|gpu:4,nic:1|32|infinite\n"
KNOWN = parse_partitions(SINFO, "cpu")
CPU = replace(REQUEST, gpus_per_node=0, generators_per_node=1, partition=None, time=None)


def config(tmp_path: Path, *overrides: str) -> VcppoConfig:
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(config_of(tmp_path, "r")))
    return load_config(path, overrides)


def test_sinfo_is_read() -> None:
    assert [
        Partition("gpu", 8, 8, 96, 172_800, False),
        Partition("cpu", 4, 0, 64, None, True),
        Partition("cpu", 2, 4, 32, None, True),
    ] == KNOWN


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 1800), ("30:15", 1815), ("24:00:00", 86_400), ("2-00:00:00", 172_800), ("1-12", 129_600),
        ("1-12:30", 131_400), ("infinite", None),
    ],
)  # fmt: skip
def test_times_are_slurms(text: str, seconds: int | None) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["soon", "", "1:2:3:4", "-3", "3h"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write hours:minutes:seconds"):
        parse_time(text)


class TestConfig:
    @pytest.mark.parametrize(
        ("overrides", "changes", "words"),
        [
            (["learner.num_ranks=3"], {}, "give each node as many ranks, learner.num_ranks=4"),
            (["learner.num_ranks=32"], {}, "are 16 on each of --learner-nodes 2, and --gpus-per-node 8"),
            (["generator.tensor_parallel_size=4"], {"generators_per_node": 4}, "need 16 GPUs a node"),
            (["learner.device=cuda"], {"gpus_per_node": 0}, "learner.device = cuda without GPUs"),
            (["broadcast.backend=nccl"], {"gpus_per_node": 0}, "broadcast.backend = nccl without GPUs"),
            (
                ["transport.endpoints=['tcp://a:5755']", "redis.url=redis://10.0.0.1:6379/0"],
                {},
                "leave it out (null)",
            ),
            (["security.curve=never"], {}, "set it to auto"),
            (["launcher.share_gpus=true"], {}, "set it to false"),
        ],
    )
    def test_what_does_not_fit_is_named(
        self, tmp_path: Path, overrides: list[str], changes: dict[str, int], words: str
    ) -> None:
        tree = config(tmp_path, "learner.num_ranks=2", *overrides)
        found = list(config_problems(replace(REQUEST, **changes), tree))
        assert len(found) == 1
        assert words in found[0]

    def test_what_it_says_to_do_fits(self, tmp_path: Path) -> None:
        for ranks in ("learner.num_ranks=4", "learner.num_ranks=16"):
            assert list(config_problems(REQUEST, config(tmp_path, ranks))) == []
        four_nodes = replace(REQUEST, learner_nodes=4)
        assert list(config_problems(four_nodes, config(tmp_path, "learner.num_ranks=32"))) == []

    def test_who_joins_has_no_learner(self, tmp_path: Path) -> None:
        assert list(config_problems(replace(REQUEST, learner_nodes=0), config(tmp_path, "learner.num_ranks=3"))) == []


class TestPartitions:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"partition": "no"}, "--partition no: there is none of that name; there are cpu, gpu"),
            ({"partition": "gpu", "gpus_per_node": 16}, "nodes of partition gpu have 8 GPUs: lower it to 8"),
            ({"partition": "gpu", "generator_nodes": 7}, "9 nodes are asked for, and partition gpu has 8"),
            ({"partition": "cpu", "gpus_per_node": 4}, "5 nodes are asked for, and partition cpu has 2 with 4 GPUs"),
            ({"cpus_per_node": 80}, "nodes of partition cpu have 64"),
            ({"partition": "gpu", "time": "3-00"}, "is above the limit of partition gpu, 2880 minutes"),
            ({"time": "tomorrow"}, "is no time of Slurm's"),
            ({"time": "4"}, "is over before --grace-seconds 300 begin"),
            ({"grace_seconds": 10}, "set it above 15"),
        ],
    )
    def test_what_it_can_not_give_is_named(self, changes: dict[str, object], words: str) -> None:
        found = list(cluster_problems(replace(CPU, **changes), KNOWN))  # type: ignore[arg-type]
        assert len(found) == 1
        assert words in found[0]

    def test_what_fits_is_not_refused(self) -> None:
        assert list(cluster_problems(CPU, KNOWN)) == []
        assert list(cluster_problems(replace(REQUEST, generator_nodes=6, time="2-00"), KNOWN)) == []

    def test_who_joins_needs_one_node_at_a_time(self) -> None:
        assert list(cluster_problems(replace(CPU, learner_nodes=0, generator_nodes=60), KNOWN)) == []

    def test_without_a_default_one_must_be_named(self) -> None:
        found = list(cluster_problems(CPU, parse_partitions(SINFO, "")))
        assert found == ["this cluster has no default partition: name one with --partition (cpu, gpu)"]


class TestFolder:
    MOUNTS = "/dev/sda / ext4 rw 0 0\nserver:/home /home nfs4 rw 0 0\ntmpfs /home/me/tmp\\040dir tmpfs rw 0 0\n"

    @pytest.mark.parametrize("folder", ["/var/runs/a", "/home/me/tmp dir/runs/a", "/homely/runs/a"])
    def test_this_machines_own_is_refused(self, folder: str) -> None:
        problem = folder_problem(replace(REQUEST, folder=Path(folder)), self.MOUNTS)
        assert problem is not None
        assert "--shared-folder" in problem

    def test_a_network_file_system_is_taken(self) -> None:
        assert folder_problem(replace(REQUEST, folder=Path("/home/me/runs/a")), self.MOUNTS) is None
