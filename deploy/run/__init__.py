"""A run's config and its records."""
