"""A run as a discrete-event model: how fast, how stale, and who waits for whom."""
