"""The buffer process: trajectories from ZeroMQ into Redis. Never imports torch."""
