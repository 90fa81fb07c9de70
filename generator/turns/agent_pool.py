"""Agents in child processes, as environments are, and the endpoint that they ask the policy at."""

from __future__ import annotations

import os

from vcppo.common.config import TaskConfig
from vcppo.generator.endpoint.server import EndpointServer
from vcppo.generator.turns.environment_pool import EnvironmentPool


class AgentPool(EnvironmentPool):
    """See `EnvironmentPool`. Its one call, `step`, is an agent's whole rollout.

    Attributes:
        server: the endpoint.
    """

    def __init__(self, config: TaskConfig) -> None:
        super().__init__(config)
        self.server = EndpointServer(config.endpoint_host)

    def child_environment(self) -> dict[str, str]:
        """The way to the endpoint leads past any proxy that this machine needs for others."""
        direct = [os.environ.get(name, "") for name in ("no_proxy", "NO_PROXY")]
        names = ",".join(filter(None, (*direct, self.server.host)))
        return {"no_proxy": names, "NO_PROXY": names}

    async def start(self) -> None:
        """As of an `EnvironmentPool`; the endpoint first."""
        await self.server.start()
        await super().start()

    async def close(self) -> None:
        """End all children, then the endpoint."""
        await super().close()
        await self.server.close()
