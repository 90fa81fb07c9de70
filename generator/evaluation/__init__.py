"""pass@1 and pass@k of a model."""
