"""Environments: tasks of several turns. Docs: docs/environments.md.

agent.py              what a user writes for an agent: `Agent`, `Endpoint`
command_agent.py      an agent that is a program
environment.py        what a user writes: `Environment`, `Observation`
episode.py            one rollout as a state machine, tokens in and tokens out. Pure
inner_task.py         what an environment takes over from the task whose problems it asks
look_up.py            the smallest environment there is
told.py               a rollout as reward functions, services and judges are told of it
turn_text.py          what an environment says, as tokens that stand behind the policy's
verifiers_agent.py    an agent that is an environment of the package verifiers, in a Python of its own
verifiers_process.py  the process of that Python
verifiers_program.py  what runs there: started by its path, imports nothing of ours
"""
