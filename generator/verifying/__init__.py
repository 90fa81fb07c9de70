"""Verifiers in child processes that are killed at a deadline."""
