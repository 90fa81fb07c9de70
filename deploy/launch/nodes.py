"""The learner over several machines: the torchrun that each of them starts. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vcppo.common.errors import EXIT_USAGE, VcppoError

RENDEZVOUS_SECONDS = 900
# Since ranks may share the agents' store, torchrun writes rank 0's address down in its first round only: a machine that
# comes back, beside one that lived on, would wait for it for ever. Without sharing it is written in each round.
ENVIRONMENT = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
MAX_RESTARTS = 3  # torchrun's own, of all ranks together; then it ends, and what started it decides


class NodesError(VcppoError):
    """The environment names nodes that can't be."""

    exit_code = EXIT_USAGE


@dataclass(frozen=True)
class Nodes:
    """This machine among those that run the learner's ranks.

    Attributes:
        count, index: how many machines there are, and which one this is, from 0.
        rendezvous: ``host:port`` at machine 0, where all meet.
        address: by which the others reach this machine. Ranks go by the order of these, so machine 0's must come first:
            rank 0 is then where generators are told to look (broadcast.host).
    """

    count: int
    index: int
    rendezvous: str
    address: str

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Nodes | None:
        """From VCPPO_NODES, VCPPO_NODE, VCPPO_RENDEZVOUS and VCPPO_ADDRESS; None where VCPPO_NODES is not set.

        Raises NodesError.
        """
        if not environment.get("VCPPO_NODES"):
            return None
        try:
            found = cls(
                int(environment["VCPPO_NODES"]),
                int(environment["VCPPO_NODE"]),
                environment["VCPPO_RENDEZVOUS"],
                environment["VCPPO_ADDRESS"],
            )
        except KeyError as error:
            raise NodesError(
                f"{error.args[0]} is not set: a learner on several nodes needs it in its environment"
            ) from None
        except ValueError:
            raise NodesError("VCPPO_NODES (how many) and VCPPO_NODE (which, from 0) must be numbers") from None
        if not 0 <= found.index < found.count:
            raise NodesError(
                f"VCPPO_NODE = {found.index}: with VCPPO_NODES = {found.count} it is in 0..{found.count - 1}"
            )
        return found

    def torchrun(self, run: str, num_ranks: int) -> list[str]:
        """Arguments after ``python -m``, up to the program. Raises NodesError when ranks can't be shared out evenly."""
        if num_ranks % self.count:
            raise NodesError(f"learner.num_ranks = {num_ranks} on {self.count} nodes: give each node as many ranks")
        # torchrun's own guess at who keeps the rendezvous, by host names, is wrong in some networks.
        conf = f"is_host={int(self.index == 0)},read_timeout={RENDEZVOUS_SECONDS},join_timeout={RENDEZVOUS_SECONDS}"
        return [
            "torch.distributed.run",
            *("--nnodes", str(self.count), "--nproc-per-node", str(num_ranks // self.count)),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", self.rendezvous, "--rdzv-id", run, "--rdzv-conf", conf),
            *("--local-addr", self.address, "--max-restarts", str(MAX_RESTARTS)),
            *("-m", "vcppo.learner"),
        ]
