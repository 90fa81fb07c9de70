"""Evaluations: files of samples, what they depend on, pass@k with intervals."""
