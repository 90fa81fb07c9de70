"""DeepSpeed: one training engine, its checkpoints, its ranks."""
