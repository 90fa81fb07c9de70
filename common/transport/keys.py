"""CURVE key pairs, one for each role: who a process is, and whom it speaks with.

`make_keys` writes ZeroMQ certificates; a service needs its own ``<role>.key_secret`` and the others' public
``<role>.key``. A process loads its keys once at start (`load_keys`) and hands them to `sockets.identify`; without,
sockets are open.

    buffer      lets in generators          generator   lets in the learner (control port)

Keys are of roles, not of processes: any number of generators share one pair, so that more can be started while a run
goes on. After `rotate_keys` the public key before is still let in (``<role>.previous.key``), until the next rotation.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import zmq
import zmq.auth

from vcppo.common.errors import EXIT_USAGE, VcppoError
from vcppo.common.files.whole_file import move

Role = Literal["buffer", "generator", "learner"]
ROLES: tuple[Role, ...] = get_args(Role)
# role -> those whose keys it needs: of the servers it speaks to, and of the clients it lets in
PEERS: dict[Role, tuple[Role, ...]] = {
    "buffer": ("generator",),
    "generator": ("buffer", "learner"),
    "learner": ("generator",),
}
_REMEDY = "make keys with `vcppo keys`, or set security.curve=never where only trusted machines reach the ports"


class KeysError(VcppoError):
    """Key files are missing or can't be read."""

    exit_code = EXIT_USAGE


class Keys(NamedTuple):
    """This process' identity.

    Attributes:
        role: whose pair it is.
        public, secret: in Z85, 40 bytes each.
        peers: role -> its public keys, the current one first.
    """

    role: Role
    public: bytes
    secret: bytes
    peers: Mapping[Role, tuple[bytes, ...]]

    def __repr__(self) -> str:  # never the secret
        return f"Keys(role={self.role!r}, public={self.public.decode()!r})"


def make_keys(folder: Path, roles: Sequence[Role] = ROLES) -> list[Role]:
    """Make the pairs that are missing below `folder`, readable by its owner alone. Returns for which roles."""
    missing = [role for role in roles if not _public(folder, role).exists() or not _secret(folder, role).exists()]
    if missing:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for role in missing:
        with private_files():
            zmq.auth.create_certificates(folder, role)
    return missing


def rotate_keys(folder: Path, roles: Sequence[Role]) -> None:
    """New pairs; each role's public key until now is still let in. Raises KeysError where there is none to replace."""
    for role in roles:
        current = public_key(folder, role)
        _secret(folder, role).unlink(missing_ok=True)
        move(_public(folder, role), _previous(folder, role))
        make_keys(folder, [role])
        assert public_key(folder, role) != current


def public_key(folder: Path, role: Role) -> bytes:
    """In Z85. Raises KeysError."""
    return _load(_public(folder, role))[0]


def load_keys(folder: Path, role: Role) -> Keys:
    """What a process of this role needs. Raises KeysError naming the file and the remedy."""
    public, secret = _load(_secret(folder, role))
    if secret is None:
        raise KeysError(f"security.keys: {_secret(folder, role)} holds no secret key: {_REMEDY}")
    peers: dict[Role, tuple[bytes, ...]] = {}
    for peer in PEERS[role]:
        previous = _previous(folder, peer)
        peers[peer] = (public_key(folder, peer), *([_load(previous)[0]] if previous.exists() else []))
    return Keys(role, public, secret, peers)


def _public(folder: Path, role: Role) -> Path:
    return folder / f"{role}.key"


def _secret(folder: Path, role: Role) -> Path:
    return folder / f"{role}.key_secret"


def _previous(folder: Path, role: Role) -> Path:
    return folder / f"{role}.previous.key"


def _load(path: Path) -> tuple[bytes, bytes | None]:
    try:
        public, secret = zmq.auth.load_certificate(path)
    except (OSError, ValueError) as error:
        raise KeysError(f"security.keys: {path} can't be read ({error}): {_REMEDY}") from error
    for key in (public, secret):
        if key is not None and len(key) != 40:
            raise KeysError(f"security.keys: {path}: a key has 40 characters, not {len(key)}: {_REMEDY}")
    return public, secret


@contextmanager
def private_files() -> Iterator[None]:
    """What is made within can be read by its owner alone."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)
