"""The learner: Algorithm 1 of the paper on DeepSpeed engines.

Names of array axes, in docstrings and in annotations (`jaxtyping`):

| axis | what it counts |
|---|---|
| A | actions: the tokens that the policy chose, of all sequences end to end |
| S | sequences, one a trajectory |
| N | tokens of a pack, prompts and tool text included |
| T | tokens of one sequence |
| P | tokens of one prompt |
| K | actions that are kept |
| G | groups, one a prompt |
| V | vocabulary |
| H | hidden size |
| ... | any shape: a weight has that of its parameter |
| S1 | S + 1, bounds of the sequences: for an array that comes before any ``S`` of its function |

The attention kernels have more, said where they are used. Tests check the annotations at every call of the modules that
tests/conftest.py names; elsewhere they cost nothing.
"""
