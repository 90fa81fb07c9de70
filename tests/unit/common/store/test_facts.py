"""Facts of a run: written and read with their types, and named in one file."""

from __future__ import annotations

import ast

import pytest

from scripts import measures
from vcppo.common.errors import VcppoError
from vcppo.common.store import facts

HOME = "common.store.facts"


class Values:
    """What the store keeps."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}

    def get_value(self, name: str) -> str | None:
        return self.kept.get(name)

    def set_value(self, name: str, value: str) -> None:
        self.kept[name] = value


def test_a_fact_is_read_as_it_was_written() -> None:
    store = Values()
    assert facts.POLICY_VERSION.read(store) is None
    facts.POLICY_VERSION.write(store, 3)
    facts.next_index("rl").write(store, 0)
    facts.STAGE.write(store, "rl")
    assert facts.POLICY_VERSION.read(store) == 3
    assert facts.next_index("rl").read(store) == 0
    assert facts.next_index("value_pretraining").read(store) is None
    assert store.kept == {"policy_version": "3", "next_index:rl": "0", "stage": "rl"}  # as runs of before have them


def test_a_value_of_another_kind_is_refused() -> None:
    store = Values()
    store.set_value("committed_step", "often")
    with pytest.raises(VcppoError, match="committed_step = 'often', which is not a number"):
        facts.COMMITTED_STEP.read(store)


def test_nobody_else_reads_or_writes_values_of_the_store() -> None:
    others = [
        f"{module.name}:{node.lineno}"
        for module in measures.modules().values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and node.attr in ("get_value", "set_value") and module.name != HOME
    ]
    assert others == []


def test_their_names_stand_in_one_file() -> None:
    names = {fact.name for fact in vars(facts).values() if isinstance(fact, facts.Fact)}
    ours = names - {"policy_version", "stage"}  # these are fields of records and log lines, too
    elsewhere = [
        f"{module.name}:{node.lineno} {node.value!r}"
        for module in measures.modules().values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Constant)
        and (node.value in ours or str(node.value).startswith("next_index:"))
        and module.name != HOME
    ]
    assert len(names) == 8
    assert elsewhere == []
