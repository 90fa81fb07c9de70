"""The real servers of the integration tests, here to be hurt."""

from tests.integration.conftest import redis_process, redis_server
from tests.integration.learner.buffer.test_buffer import buffer

__all__ = ["buffer", "redis_process", "redis_server"]
