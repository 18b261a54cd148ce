"""Tab-separated values: as `csv`, with a tab between the fields."""

from __future__ import annotations

from pathlib import Path

from tunewright.sources import RawTable, Settings
from tunewright.sources import csv as comma_separated


def read(path: Path, settings: Settings) -> RawTable:
    """Read a tab-separated file. See `tunewright.sources.csv.read`."""
    return comma_separated.read(path, settings, delimiter="\t")


def columns(path: Path, settings: Settings) -> list[str]:
    """See `tunewright.sources.csv.columns`."""
    return comma_separated.columns(path, settings, delimiter="\t")
