"""Comparing mathematical answers: `common.tasks.math_answers` is the way in."""
