"""Policy and value models: loading, saving, names of their weights."""
