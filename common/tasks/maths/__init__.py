"""Comparing mathematical answers: `vcppo.common.tasks.math_answers` is the way in."""
