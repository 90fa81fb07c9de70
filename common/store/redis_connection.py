"""One client of one Redis: let in, patient while it is away, its errors made ours.

A call that finds Redis gone retries with backoff, says so in the log, and raises `StoreUnavailable` when it stays away.
All calls are synchronous and may be made from any thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import redis
import structlog
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.connection import PythonRespSerializer
from redis.retry import Retry

from vcppo.common.errors import EXIT_EXHAUSTED, VcppoError
from vcppo.common.store.codec import redact

log = structlog.get_logger(__name__)

SOCKET_TIMEOUT_SECONDS = 15.0
NEARLY_FULL = 0.9  # of maxmemory
_BLOCK_SECONDS = 5.0  # longest single XREAD BLOCK; below the socket's own timeout
# Arguments above this are sent from where they are. Replies are read by hiredis, but its packer would copy a batch of
# payloads into one command, which costs more than all the rest of an append.
_LARGE_BYTES = 6000

T = TypeVar("T")


class StoreError(VcppoError):
    """The store refused: the text says what and why."""


class StoreUnavailable(StoreError):
    """Redis can't be reached, or is out of memory; trying again later may help."""


class NoLongerKnown(StoreError):
    """A script refused its caller, whose incarnation the store does not know (`vcppo.common.store.incarnations`)."""


class StoreFull(StoreUnavailable):
    """Redis is at its maxmemory: committing what is trained makes room."""


class StoreCannotWrite(StoreUnavailable):
    """Redis can't write to its disk: freeing some there helps, and it goes on by itself."""

    exit_code = EXIT_EXHAUSTED
    resource = "disk space"


class _Misconf(redis.ConnectionError):
    """Redis answers that it can't persist: as good as being away."""


class Credentials(NamedTuple):
    """How to be let in. Everything None: as Redis' default user, without TLS' own authority."""

    username: str | None = None
    password: str | None = None
    ca_file: str | None = None  # of a rediss:// server; None: the system's

    def __repr__(self) -> str:  # never the password
        return f"Credentials(username={self.username!r})"

    def as_options(self) -> dict[str, str]:
        """Keyword arguments of redis-py's client; what is not set is left out."""
        options = {"username": self.username, "password": self.password, "ssl_ca_certs": self.ca_file}
        return {name: value for name, value in options.items() if value is not None}


class Memory(NamedTuple):
    """Redis' memory, bytes; `limit` 0: none."""

    used: int
    limit: int

    @property
    def is_short(self) -> bool:
        """Near its limit: nothing more should be issued until something is committed."""
        return self.limit > 0 and self.used >= NEARLY_FULL * self.limit


class RedisConnection:
    """Make it with `connect`.

    Attributes:
        address: the URL without its password, for messages.
    """

    def __init__(self, client: redis.Redis, url: str, patience_seconds: float) -> None:
        self.address = redact(url)
        self._client = client
        self._scripts: dict[str, Any] = {}
        self._patience_seconds = patience_seconds

    @classmethod
    def connect(
        cls, url: str, deadline_seconds: float, *, patience_seconds: float, credentials: Credentials
    ) -> RedisConnection:
        """To the Redis at `url`, which must answer within `deadline_seconds`.

        Later calls bear with a Redis that is away for `patience_seconds`. Raises `StoreError` naming the
        URL and the remedy.
        """
        try:
            client = redis.Redis.from_url(
                url,
                protocol=2,
                command_packer=PythonRespSerializer(_LARGE_BYTES, _encode),
                socket_timeout=SOCKET_TIMEOUT_SECONDS,
                socket_connect_timeout=3.0,
                health_check_interval=0,
                driver_info=None,  # CLIENT SETINFO, which Redis 7.0 does not know
                retry=Retry(NoBackoff(), 0),  # `call` retries, and logs that it does
                **credentials.as_options(),
            )
        except ValueError as error:
            raise StoreError(f"redis.url: {redact(url)!r}: {error}") from error
        connection = cls(client, url, deadline_seconds)
        try:
            connection.call("connect", lambda client: client.ping())
        except StoreCannotWrite:  # it is there
            raise
        except StoreUnavailable as error:
            raise StoreError(
                f"no Redis at {redact(url)} after {deadline_seconds:g} s ({error.__cause__}); start one there, "
                "set redis.url, or leave redis.url empty and let `vcppo up` start it"
            ) from error
        connection._patience_seconds = patience_seconds
        return connection

    def close(self) -> None:
        """Close all connections to Redis."""
        self._client.close()

    def register(self, sources: Mapping[str, str]) -> None:
        """Lua scripts by name, for `run`."""
        self._scripts = {name: self._client.register_script(source) for name, source in sources.items()}

    def run(self, script: str, keys: Sequence[str], args: Sequence[str | bytes | int]) -> Any:
        """What a registered script returns."""
        return self.call(script, lambda _: self._scripts[script](keys=keys, args=args))

    def call(self, what: str, do: Callable[[redis.Redis], T]) -> T:
        """`do(client)`, again with backoff while Redis can't be reached.

        Args:
            what: its name in log lines and errors.

        Raises:
            StoreUnavailable: it stayed away.
            StoreCannotWrite: its disk stayed full.
            StoreFull: it is at its maxmemory.
            StoreError: it refused.
        """
        started = time.monotonic()

        def failed(error: Exception, failures: int) -> None:
            waited = time.monotonic() - started
            if isinstance(error, redis.AuthenticationError):  # redis-py counts it as a broken connection
                raise StoreError(
                    f"Redis at {self.address} does not let us in ({error}): give redis.username and"
                    " redis.password_file, or the environment's VCPPO_REDIS_PASSWORD"
                ) from error
            full = isinstance(error, _Misconf)
            if waited > self._patience_seconds and full:
                raise StoreCannotWrite(
                    f"Redis at {self.address} can't write to its disk since {waited:.0f} s ({error}): free some where"
                    " it keeps its data"
                ) from error
            if waited > self._patience_seconds:
                raise StoreUnavailable(f"Redis at {self.address} is away since {waited:.0f} s: {error}") from error
            if failures in (1, 4) or failures % 10 == 0:
                lacks = {"resource": "disk space, where Redis keeps its data"} if full else {}
                log.warning("waiting_for_redis", url=self.address, call=what, seconds=waited, error=str(error), **lacks)

        retry = Retry(ExponentialWithJitterBackoff(base=0.05, cap=1.0), -1, (redis.ConnectionError, redis.TimeoutError))
        try:
            return retry.call_with_retry(lambda: self._do(do), failed, with_failure_count=True)
        except redis.RedisError as error:
            if "OOM command" in str(error):  # also from within a script, where it has no class of its own
                raise StoreFull(
                    f"Redis at {self.address} is at its maxmemory ({what}): raise it (redis.maxmemory_mib), or "
                    "checkpoint more often (learner.checkpoint_every)"
                ) from error
            kind = NoLongerKnown if str(error).startswith("FENCED ") else StoreError
            raise kind(f"Redis at {self.address} refused {what}: {error}") from error

    def _do(self, do: Callable[[redis.Redis], T]) -> T:
        try:
            return do(self._client)
        except redis.ResponseError as error:
            if "MISCONF" in str(error):  # also from within a script
                raise _Misconf(str(error)) from error
            raise

    def transaction(self, what: str, queue: Callable[[Any], object]) -> list[Any]:
        """The replies to the commands that `queue(pipeline)` puts in, all of one instant."""

        def execute(client: redis.Redis) -> list[Any]:
            with client.pipeline(transaction=True) as pipeline:
                queue(pipeline)
                return pipeline.execute()

        return self.call(what, execute)

    def hash_fields(self, what: str, key: str, fields: Sequence[str]) -> list[bytes | None]:
        """The values of some fields of a hash, in this order; None for those that are not there."""
        return cast(list[bytes | None], self.call(what, lambda client: client.hmget(key, list(fields))))

    def newest_after(self, stream: str, after: str | bytes, seconds: float) -> str | None:
        """The newest id of `stream` once there is one above `after`; None after `seconds` (at most 5) without."""
        milliseconds = max(1, int(min(seconds, _BLOCK_SECONDS) * 1000))
        reply: Any = self.call("wait", lambda client: client.xread({stream: after}, block=milliseconds))
        return cast(bytes, reply[0][1][-1][0]).decode() if reply else None

    def memory(self) -> Memory:
        """How full Redis is."""
        facts = self._memory_facts()
        return Memory(int(facts["used_memory"]), int(facts["maxmemory"]))

    def refuse_eviction(self) -> None:
        """Raises `StoreError` if Redis would throw keys away when it is full."""
        facts = self._memory_facts()
        policy = str(facts.get("maxmemory_policy", "noeviction"))
        if int(facts["maxmemory"]) and policy != "noeviction":
            raise StoreError(
                f"Redis at {self.address} throws keys away when it is full (maxmemory-policy {policy}): prompts "
                "and trajectories would be lost; set it to noeviction"
            )

    def _memory_facts(self) -> Any:
        return self.call("memory", lambda client: client.info("memory"))


def _encode(argument: str | bytes | float) -> bytes:
    return argument if isinstance(argument, bytes) else str(argument).encode()
