"""Which prompts are issued, and which trajectories make the next batch."""
