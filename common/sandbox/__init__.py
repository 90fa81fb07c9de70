"""Runs a program nobody has read, such as one a model wrote, so that it can do no harm.

    isolation = probe(job)                      what this machine allows, found out by trying
    result = run_program(job, isolation.layers)

    caller ──fork──▶ keeper ──fork──▶ program          the keeper outlives neither: it kills the whole tree
      │  ◀──status────┘ │  ◀──exit──────┘               - when the program ends, however it ends,
      └──life line──────┘                               - when the caller lets go of the life line, by dying too

Nothing is installed for it: the kernel's own means, in layers each of which it may refuse.

(always)    limits on CPU, memory, tasks, files, output; no descriptors, no environment, no capabilities
seccomp     a list of allowed system calls: no sockets, no new processes, signals only to itself.    Needs x86-64
landlock    reads the interpreter and system libraries only; writes only a folder of its own, if any. Needs Linux 5.13
namespaces  process tree, file tree and network of its own, all empty; a folder of limited size.
            Needs root or user namespaces, and Linux 5.12
user        a user id that nothing else has.                                                          Needs root

`Isolation.missing` says which promises no layer keeps. What is not promised: see docs/operations.md.
"""

from vcppo.common.sandbox.job import Isolation, Job, Layer, Layers, Limits, Result, SandboxError
from vcppo.common.sandbox.probe import probe
from vcppo.common.sandbox.run import run_program

__all__ = ["Isolation", "Job", "Layer", "Layers", "Limits", "Result", "SandboxError", "probe", "run_program"]
