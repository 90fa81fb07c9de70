"""Trajectories from generators to buffers, and control calls from the learner to generators, over ZeroMQ.

    TrajectorySender ──DEALER──▶ ROUTER── TrajectoryReceiver        trajectories; acks come back
    ControlClient    ──DEALER──▶ ROUTER── ControlServer             request / reply

Only `sockets` imports zmq.
"""

from common.transport.control import ControlClient, ControlError, ControlServer, ControlTimeout
from common.transport.receiver import Received, TrajectoryReceiver
from common.transport.sender import TrajectorySender
from common.transport.sockets import TransportError
from common.transport.spool import Spool

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
]
