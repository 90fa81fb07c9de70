"""`vcppo check`: everything about a run that can be known before anything is started.

    machine.py     facts of this machine, looked up once
    settings.py    warnings about the config, rewards, what the evaluation can tell
    devices.py     GPUs and torch's build, memory, limits of the system
    files.py       the model folder's files, the run folder, space on disk
    network.py     ports, Redis, keys
    quick.py       these, as one list; it opens every `vcppo up` and every container
    children.py    `vcppo.learner.check` and `vcppo.generator.check`, side by side, each check with a deadline
    render.py      lines on the terminal, or JSON
    check_command.py, plan_command.py    the commands; run_check.py, run_plan.py: their work

A quick check is a function of a `Setup`: a config, a machine, and whether a run is about to start.
"""
