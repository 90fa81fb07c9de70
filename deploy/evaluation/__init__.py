"""`vcppo eval` and the evaluations of other commands."""
