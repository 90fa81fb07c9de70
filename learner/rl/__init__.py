"""The loop of Algorithm 1, and what stands beside it."""
