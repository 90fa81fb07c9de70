"""The records that cross processes: prompts, trajectories, their bytes and their names."""
