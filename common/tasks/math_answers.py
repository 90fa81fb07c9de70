"""Is a mathematical answer the reference answer? math-verify reads and compares; plain equality goes first.

Symbolic comparison may hang on hostile input. math-verify's own alarm-based time-outs are switched off: they
work in main threads only, and the verifier's child process is killed at its deadline anyway.
"""

from __future__ import annotations

import logging

from common.tasks.interface import Verdict


def judge(reference: str, text: str) -> Verdict:
    """Verdict on the answer that `text` ends in (``\\boxed{}``, LaTeX or a bare number).

    Args:
        reference: number, expression or LaTeX, with or without ``$`` or ``\\boxed``.
        text: the part of the response after the thinking.
    """
    stripped = text.strip()
    if stripped and stripped == reference.strip():
        return Verdict("correct", stripped)
    from math_verify import parse, verify

    _silence_timeout_warning()
    given = parse(text, parsing_timeout=None)
    if not given:
        return Verdict("unparsable", None)
    # A bare "\frac12" is read as LaTeX only inside $…$; the reference as it stands goes first.
    expected = parse(_as_latex(reference), parsing_timeout=None) or parse(reference, parsing_timeout=None)
    is_right = verify(expected, given, timeout_seconds=None)
    return Verdict("correct" if is_right else "wrong", str(given[-1]))


def _as_latex(reference: str) -> str:
    plain = reference.strip()
    return plain if "$" in plain or "\\boxed" in plain else f"${plain}$"


def _silence_timeout_warning() -> None:
    """Without time-outs math-verify warns in every child; here that is on purpose."""
    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.ERROR)
