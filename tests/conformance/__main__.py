"""``python -m tests.conformance [module:Estimator] [--markdown]``: run the cases; exit 1 if one you asked for fails.

Without a name: ours and the peers' formulas. ``--markdown`` prints docs/conformance.md.
"""

from __future__ import annotations

import argparse
import importlib
import sys

from tests.conformance.adapters import ESTIMATORS
from tests.conformance.cases import all_cases
from tests.conformance.check import check
from tests.conformance.interface import Estimator
from tests.conformance.page import markdown


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.conformance", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("estimator", nargs="?", metavar="MODULE:CLASS", help="yours, see tests/conformance/README.md")
    parser.add_argument("--markdown", action="store_true", help="the page docs/conformance.md")
    given = parser.parse_args(arguments)
    estimators = ESTIMATORS if given.estimator is None else (load(parser, given.estimator),)
    cases = all_cases()
    results = [[check(estimator, case) for case in cases] for estimator in estimators]
    if given.markdown:
        sys.stdout.write(markdown([estimator.name for estimator in estimators], results))
        return 0
    for estimator, column in zip(estimators, results, strict=True):
        for result in column:
            sys.stdout.write(f"{estimator.name:10} {result.case.name:26} {result.status:12} {result.detail}\n")
    return 1 if any(result.status == "fail" for result in results[0]) else 0  # yours, or ours: peers may differ


def load(parser: argparse.ArgumentParser, name: str) -> Estimator:
    """An instance of ``module:Class``; usage error if it can't be had."""
    module, _, attribute = name.partition(":")
    try:
        estimator: Estimator = getattr(importlib.import_module(module), attribute)()
        estimator.name, estimator.estimate  # noqa: B018  (there, or AttributeError)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        parser.error(f"{name!r} can't be loaded ({error}): give MODULE:CLASS with a name and an estimate method")
    return estimator


if __name__ == "__main__":
    sys.exit(main())
