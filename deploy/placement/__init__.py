"""Which process computes on which GPU, and on which cores near it."""
