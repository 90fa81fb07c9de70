"""`vcppo experiment`: a suite of arms x seeds from one cold start a seed, resumable, nothing computed twice."""
