"""Figures of this project, each a ratio against a physical limit or a peer's way, taken in one run: `make bench`."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
