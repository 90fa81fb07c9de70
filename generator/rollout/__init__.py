"""Prompts in, trajectories out, and the control port."""
