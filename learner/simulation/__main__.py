"""``python -m vcppo.learner.simulation < CASES``: a `Workload` as JSON a line in, a `Simulated` as JSON a line out.

A child program of `vcppo plan --simulate`, which may not import the learner's credits.
"""

import sys

from vcppo.common.records.simulated import Workload
from vcppo.learner.simulation.model import simulate

if __name__ == "__main__":
    for line in sys.stdin:
        sys.stdout.write(simulate(Workload.model_validate_json(line)).model_dump_json() + "\n")
        sys.stdout.flush()
