"""Which layers work here? Found out by running a harmless program behind them, never by reading versions."""

from __future__ import annotations

from collections.abc import Sequence

from vcppo.common.sandbox.job import Isolation, Job, Layer, Layers, SandboxError
from vcppo.common.sandbox.run import run_program

# A new user can often reach the interpreter only in a file tree of its own, so that goes first.
_ORDER: tuple[Layer, ...] = ("namespaces", "seccomp", "landlock", "user")


def probe(job: Job, wanted: Sequence[Layer] = _ORDER) -> Isolation:
    """Try the layers one upon another with `job`, which must exit with 0; keep what works.

    Raises:
        SandboxError: the job fails without any.
    """
    _try(job, frozenset())
    layers: Layers = frozenset()
    refused: dict[Layer, str] = {}
    for layer in wanted:
        try:
            _try(job, layers | {layer})
        except SandboxError as error:
            refused[layer] = str(error)
        else:
            layers |= {layer}
    return Isolation(layers, refused)


def _try(job: Job, layers: Layers) -> None:
    result = run_program(job, layers)
    if result.ending != "exited" or result.exit_code != 0:
        said = result.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise SandboxError(f"{job.argv[0]} ends with {result.ending} {result.exit_code} ({''.join(said)})")
