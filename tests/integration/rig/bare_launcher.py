"""The real launcher with real Redis and buffer, without generators; its learner waits for a file and ends.

python bare_launcher.py CONFIG FILE
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from vcppo.common.config import load_config
from vcppo.common.errors import VcppoError
from vcppo.deploy.launch.launcher import Launcher
from vcppo.deploy.launch.nodes import Nodes
from vcppo.deploy.processes.process_spec import ProcessSpec
from vcppo.deploy.run.run_config import exclusive, write_config
from vcppo.deploy.terminal.session import open_session

_WAITING = """
import pathlib, sys, time
print('{"event": "learner_ready"}', flush=True)
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.05)
"""


class BareLauncher(Launcher):
    def generator_specs(self) -> list[ProcessSpec]:
        return []

    def learner_spec(self, nodes: Nodes | None = None) -> ProcessSpec:
        return replace(super().learner_spec(nodes), command=[sys.executable, "-c", _WAITING, sys.argv[2]])


if __name__ == "__main__":
    config = load_config(Path(sys.argv[1]), [])
    with exclusive(config.run.path):
        write_config(config)
        with open_session(config, "follow") as session:
            try:
                ledger = BareLauncher(config, session.sink).run()
            except VcppoError as error:  # as `vcppo up` does
                sys.stderr.write(f"{error}\n")
                sys.exit(error.exit_code)
    sys.exit(0 if ledger.is_exact else 1)
