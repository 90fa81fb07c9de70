"""``python -m learner.check --config run.yaml``: lines for `vcppo check` on standard output (`common.check_lines`)."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from common.check_lines import Check, report
from common.config import load_config
from common.end_process import end_process
from common.errors import EXIT_OK, VcppoError
from common.log import configure_logging
from learner.check.context import Context
from learner.check.export import export
from learner.check.model import critic, device, policy
from learner.check.packing import packing

CHECKS: tuple[Check[Context], ...] = (
    Check("model", "device", device, 60.0),
    Check("model", "loads", policy, 300.0),
    Check("model", "exports", export, 300.0),
    Check("model", "packing", packing, 300.0),
    Check("model", "critic", critic, 300.0),
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m learner.check", description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--first", type=int, default=0, help="number of the check to begin with")
    given = parser.parse_args(arguments)
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes elsewhere
    try:
        config = load_config(given.config, [])
        configure_logging(config.logging, "learner", config.run.name)
        report(CHECKS, Context(config), lines, first=given.first)
    except VcppoError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return EXIT_OK


if __name__ == "__main__":
    end_process(main())
