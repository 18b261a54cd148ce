"""Tab-separated values: as `csv`, with a tab between the fields."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tunewright.sources import Record, Rejected, Settings
from tunewright.sources import csv as comma_separated


def records(path: Path, settings: Settings, limit: int) -> Iterator[Record | Rejected]:
    """Every record of a tab-separated file. See `tunewright.sources.csv.records`."""
    return comma_separated.records(path, settings, limit, delimiter="\t")


def columns(path: Path, settings: Settings) -> list[str]:
    """See `tunewright.sources.csv.columns`."""
    return comma_separated.columns(path, settings, delimiter="\t")
