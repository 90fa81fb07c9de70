"""The learner over several machines: what each is told to start. Run for real in tests/compose/test_two_hosts.py."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from vcppo.deploy.launch.nodes import Nodes, NodesError

ENVIRONMENT = {
    "VCPPO_NODES": "4",
    "VCPPO_NODE": "1",
    "VCPPO_RENDEZVOUS": "learner-0:29400",
    "VCPPO_ADDRESS": "learner-1",
}


def test_ranks_are_shared_out_and_node_zero_keeps_the_rendezvous() -> None:
    nodes = Nodes.from_environment(ENVIRONMENT)
    assert nodes is not None
    words = nodes.torchrun("run", 32)
    options = dict(pairwise(words))
    assert (options["--nnodes"], options["--nproc-per-node"]) == ("4", "8")
    assert (options["--rdzv-endpoint"], options["--local-addr"]) == ("learner-0:29400", "learner-1")
    assert options["--rdzv-conf"].startswith("is_host=0,")
    assert replace(nodes, index=0).torchrun("run", 32)[words.index("--rdzv-conf") + 1].startswith("is_host=1,")
    assert words[-2:] == ["-m", "vcppo.learner"]


def test_one_machine_needs_no_nodes() -> None:
    assert Nodes.from_environment({}) is None
    assert Nodes.from_environment({"VCPPO_NODES": ""}) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"VCPPO_NODE": "4"}, r"VCPPO_NODE = 4: .*0\.\.3"),
        ({"VCPPO_NODE": "one"}, "must be numbers"),
        ({"VCPPO_ADDRESS": None}, "VCPPO_ADDRESS is not set"),
    ],
)
def test_what_can_not_be_is_refused_by_name(change: dict[str, str | None], message: str) -> None:
    environment = {name: text for name, text in {**ENVIRONMENT, **change}.items() if text is not None}
    with pytest.raises(NodesError, match=message) as caught:
        Nodes.from_environment(environment)
    assert caught.value.exit_code == 2


def test_ranks_that_can_not_be_shared_out_are_refused() -> None:
    with pytest.raises(NodesError, match=r"learner\.num_ranks = 6 on 4 nodes"):
        Nodes(4, 0, "learner-0:29400", "learner-0").torchrun("run", 6)
