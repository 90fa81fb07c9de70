"""Attention by segment, and log-probs in blocks."""
