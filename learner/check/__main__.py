"""``python -m vcppo.learner.check --config run.yaml``: lines for `vcppo check` on stdout.

Their form: `vcppo.common.check.check_child`.
"""

from __future__ import annotations

from collections.abc import Sequence

from vcppo.common.check.check_child import arguments_of, run_child
from vcppo.common.check.check_lines import Check
from vcppo.common.process.end_process import end_process
from vcppo.learner.check.export_checks import export
from vcppo.learner.check.loaded_model import Context
from vcppo.learner.check.model_checks import critic, device, policy
from vcppo.learner.check.packing_checks import packing

CHECKS: tuple[Check[Context], ...] = (
    Check("model", "device", device, 60.0),
    Check("model", "loads", policy, 300.0),
    Check("model", "exports", export, 300.0),
    Check("model", "packing", packing, 300.0),
    Check("model", "critic", critic, 300.0),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The process that `vcppo check` starts for the learner's part; returns its exit code."""
    given = arguments_of("python -m vcppo.learner.check", __doc__).parse_args(arguments)
    return run_child(given, "learner", CHECKS, Context)


if __name__ == "__main__":
    end_process(main())
