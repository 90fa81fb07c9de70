"""Experiment trackers: Weights & Biases, MLflow, trackio. Optional; each takes the metrics of one service's file."""
