"""`vcppo plan --simulate`: a run's own measurements, with other numbers of generators."""
