"""Trajectories from generators to buffers, and control calls from the learner to generators, over ZeroMQ.

    TrajectorySender ──DEALER──▶ ROUTER── TrajectoryReceiver        trajectories; acks come back
    ControlClient    ──DEALER──▶ ROUTER── ControlServer             request / reply

Only `sockets` and `keys` import zmq. `use_keys` says who this process is, before the first socket.
"""

from vcppo.common.config import VcppoConfig
from vcppo.common.transport.control import ControlClient, ControlError, ControlServer, ControlTimeout
from vcppo.common.transport.keys import Role, load_keys
from vcppo.common.transport.receiver import Received, TrajectoryReceiver
from vcppo.common.transport.sender import TrajectorySender
from vcppo.common.transport.sockets import TransportError, identify
from vcppo.common.transport.spool import Spool


def use_keys(config: VcppoConfig, role: Role) -> None:
    """Load this process' keys if the run uses any (`security.curve`). Raises KeysError."""
    identify(load_keys(config.keys_folder, role) if config.uses_curve else None)


__all__ = [
    "ControlClient",
    "ControlError",
    "ControlServer",
    "ControlTimeout",
    "Received",
    "Spool",
    "TrajectoryReceiver",
    "TrajectorySender",
    "TransportError",
    "use_keys",
]
