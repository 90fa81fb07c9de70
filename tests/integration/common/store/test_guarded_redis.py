"""A Redis with the ACL file of `vcppo keys`, restarted."""

from __future__ import annotations

import pytest

from tests.integration.conftest import RedisServer
from tests.integration.learner.buffer.test_buffer import a_prompt
from vcppo.common.store.run_store import Credentials, RunStore, StoreError
from vcppo.deploy.terminal.keys_command import USER

PASSWORD = "correct horse battery staple"


def connect(server: RedisServer, credentials: Credentials) -> RunStore:
    return RunStore.connect(server.url, "run", 3.0, credentials=credentials)


def test_it_has_everything_again_after_a_restart(redis_process: RedisServer) -> None:
    """Redis 7.0 replays its append-only file with the default user's rights: shut out, that user must keep them."""
    redis_process.kill()
    redis_process.start_guarded(PASSWORD)
    ours = Credentials(USER, PASSWORD)
    connect(redis_process, ours).issue([a_prompt(number) for number in range(8)])
    before = connect(redis_process, ours).ledger()
    assert before.issued == 8
    redis_process.kill()
    redis_process.start_guarded(PASSWORD)
    assert connect(redis_process, ours).ledger() == before
    with pytest.raises(StoreError):
        connect(redis_process, Credentials(None, None))
