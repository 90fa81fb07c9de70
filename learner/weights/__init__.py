"""Weights from the learner to the generators, and the proof that they arrived."""
