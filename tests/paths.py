"""Where things are. A test that moves to another folder takes nothing with it that counts folders."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "data"
RIG = ROOT / "tests" / "integration" / "rig"  # what integration tests start as processes, and its configs
