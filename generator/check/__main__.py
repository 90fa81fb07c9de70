"""``python -m vcppo.generator.check --config run.yaml``: lines for `vcppo check` on stdout.

Their form: `vcppo.common.check.check_child`.
"""

from __future__ import annotations

from collections.abc import Sequence

from vcppo.common.check.check_child import arguments_of, run_child
from vcppo.common.check.check_lines import Check
from vcppo.common.process.end_process import end_process
from vcppo.generator.check import data_checks as data
from vcppo.generator.check import engine_checks as engine
from vcppo.generator.check import prompt_checks as prompts
from vcppo.generator.check import tokenizer_checks as tokenizer
from vcppo.generator.check import verifier_checks as verifier
from vcppo.generator.check.data_context import Context

CHECKS: tuple[Check[Context], ...] = (
    Check("data", "task", data.task, 120.0),
    Check("data", "rows", data.rows, 300.0),
    Check("data", "held out", data.held_out, 60.0),
    Check("data", "on the way", data.on_the_way, 60.0),
    Check("tokenizer", "loads", tokenizer.loads, 120.0),
    Check("tokenizer", "text", tokenizer.text, 120.0),
    Check("tokenizer", "vocabulary", tokenizer.vocabulary, 60.0),
    Check("tokenizer", "stop tokens", tokenizer.stop_tokens, 60.0),
    Check("prompts", "as sent", prompts.shown, 60.0),
    Check("prompts", "lengths", prompts.lengths, 600.0),
    Check("verifier", "verdicts", verifier.verdicts, 300.0),
    Check("engine", "vLLM", engine.settings, 180.0),
)
GENERATION: tuple[Check[Context], ...] = (Check("generation", "responses", engine.responses, 900.0),)


def main(arguments: Sequence[str] | None = None) -> int:
    """The process that `vcppo check` starts for the generator's part; returns its exit code."""
    parser = arguments_of("python -m vcppo.generator.check", __doc__)
    parser.add_argument("--generate", type=int, default=0, metavar="N", help="bring vLLM up and make N responses")
    given = parser.parse_args(arguments)
    checks = CHECKS + GENERATION if given.generate else CHECKS
    return run_child(given, "generator", checks, lambda config: Context(config, given.generate))


if __name__ == "__main__":
    end_process(main())
