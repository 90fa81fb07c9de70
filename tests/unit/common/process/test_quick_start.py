"""Collections are put off and taken up in programs of their own; in anybody else's process nothing changes."""

from __future__ import annotations

import ast
import gc
import subprocess
import sys

import pytest

from tests.paths import ROOT
from vcppo.common.process.quick_start import take_up_collections

_PROGRAM = """
import gc
from vcppo.common.process.quick_start import put_off_collections, take_up_collections
put_off_collections()
import asyncio, email, http.client
class Ring: pass
rings = []
import weakref
for _ in range(2000):
    ring = Ring(); ring.itself = ring
    rings.append(weakref.ref(ring)); del ring
print(sum(ring() is not None for ring in rings), gc.isenabled(), gc.get_freeze_count() > 0)
take_up_collections()
print(gc.isenabled(), gc.get_freeze_count() > 1000)
ring = Ring(); ring.itself = ring; last = weakref.ref(ring); del ring
gc.collect()
print(last() is None)
"""


def test_collections_rest_while_imports_last_and_go_on_afterwards() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines() == ["2000 False False", "True True", "True"]


def test_a_process_that_did_not_put_them_off_freezes_nothing() -> None:
    before = gc.get_freeze_count()
    take_up_collections()
    assert (gc.isenabled(), gc.get_freeze_count()) == (True, before)


@pytest.mark.parametrize("wing", ["generator", "learner"])
def test_they_are_put_off_before_the_first_large_import_and_by_the_program_alone(wing: str) -> None:
    """Importing the module, as tests do, must leave the collector of whoever imports it alone."""
    body = ast.parse((ROOT / wing / "__main__.py").read_text()).body
    where = [index for index, node in enumerate(body) if "put_off_collections()" in ast.unparse(node)]
    assert [ast.unparse(body[index]).splitlines()[0] for index in where] == ["if __name__ == '__main__':"]
    before = [ast.unparse(node) for node in body[: where[0]] if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [line for line in before if "__future__" not in line and "quick_start" not in line] == []
