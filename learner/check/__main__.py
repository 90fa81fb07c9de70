"""``python -m vcppo.learner.check --config run.yaml``: lines for `vcppo check` on stdout (`vcppo.common.check_child`)."""

from __future__ import annotations

from collections.abc import Sequence

from vcppo.common.check_child import arguments_of, run_child
from vcppo.common.check_lines import Check
from vcppo.common.end_process import end_process
from vcppo.learner.check.context import Context
from vcppo.learner.check.export import export
from vcppo.learner.check.model import critic, device, policy
from vcppo.learner.check.packing import packing

CHECKS: tuple[Check[Context], ...] = (
    Check("model", "device", device, 60.0),
    Check("model", "loads", policy, 300.0),
    Check("model", "exports", export, 300.0),
    Check("model", "packing", packing, 300.0),
    Check("model", "critic", critic, 300.0),
)


def main(arguments: Sequence[str] | None = None) -> int:
    given = arguments_of("python -m vcppo.learner.check", __doc__).parse_args(arguments)
    return run_child(given, "learner", CHECKS, Context)


if __name__ == "__main__":
    end_process(main())
