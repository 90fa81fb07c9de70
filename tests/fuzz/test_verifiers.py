"""Symbolic maths on hostile text, in its child: a verdict before the deadline, and the next response is judged.

What is killed at the deadline is in tests/unit/generator/verifying/test_verifier_pool.py: nothing here gets that far.
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

from vcppo.common.config import TaskConfig
from vcppo.common.tasks.code_answers import last_code_block
from vcppo.generator.verifying.verifier_pool import VerifierPool

SECONDS = 2.0
LARGE = {
    "tower": "$9^{9^{9^{9}}}$",
    "factorial": r"\boxed{100000000!}",
    "binomial": r"\boxed{\binom{1000000000}{500000000}}",
    "nested": r"\boxed{" + r"\frac{1}{" * 3000 + "1" + "}" * 3001,
    "parentheses": "$" + "(" * 20_000 + "1" + ")" * 20_000 + "$",
}
ODD = {
    "digits": r"\boxed{" + "9" * 5000 + "}",
    "many digits": r"\boxed{" + "9" * 100_000 + "}",
    "boxes": r"\boxed{" * 3000,
    "half a character": "\ud800 $1$",
    "nul": "\0$1$",
    "long": "a" * 1_000_000,
    "division": r"\boxed{\frac{1}{0}}",
    "power": r"\boxed{9^{5000}}",
}


def test_hostile_answers_get_an_outcome_by_the_deadline(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": f"q{n}", "answer": n}) + "\n" for n in range(20)))
    options: dict[str, object] = {"path": str(rows), "judge_truncated": True}
    config = TaskConfig(name="dataset", options=options, verifier_timeout_seconds=SECONDS)

    async def judge_all() -> None:
        pool = VerifierPool(config)
        await pool.start()
        try:
            for name, text in {**LARGE, **ODD}.items():
                began = time.monotonic()
                verdict = await pool.verify({"reference": "42"}, text, "length")
                assert verdict.outcome in ("wrong", "unparsable"), (name, verdict)
                assert time.monotonic() - began < SECONDS
            assert (await pool.verify({"reference": "42"}, r"\boxed{42}", "stop")).outcome == "correct"
        finally:
            await pool.close()

    asyncio.run(judge_all())


@pytest.mark.parametrize("text", ["```" + " " * 200_000 + "`", "`" * 200_000 + " `", "~~~\n" * 100_000, " " * 10**6])
def test_finding_a_program_takes_linear_time(text: str) -> None:
    """White space before a back-tick took the square of its length."""
    began = time.process_time()
    last_code_block(text)
    assert time.process_time() - began < 20
