"""Facts: values of reports, each with the place that it came from.

What a card says in figures is taken from here and from nowhere else. So whoever reads one can look it up: the file by
its SHA-256, the value by its JSON pointer (RFC 6901).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from tunewright.files import read_json, sha256_file

Plain = bool | int | float | str


class Fact(BaseModel):
    """One value: what stands at `pointer` in the JSON file that has this SHA-256."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    value: Plain
    file: str
    pointer: str
    sha256: str


class Facts:
    """The reports of stages, and the values that were taken of them."""

    def __init__(self, reports: Mapping[str, Path]) -> None:
        """reports: stage → file.

        Raises
            UserError  for a report that is missing or no JSON.
        """
        self._files = {stage: path.as_posix() for stage, path in reports.items()}
        self._reports = {stage: read_json(path) for stage, path in reports.items()}
        self._sha256 = {stage: sha256_file(path) for stage, path in reports.items()}
        self.taken: dict[str, Fact] = {}
        """By name: the stage and the keys below it, with dots between."""

    def look(self, stage: str, *keys: str | int) -> Any:
        """What stands at that place, to be looked at and not to be told; None where there is nothing."""
        found = self._reports.get(stage)
        for key in keys:
            if isinstance(found, Mapping):
                found = found.get(str(key))
            elif isinstance(found, list) and isinstance(key, int) and key < len(found):
                found = found[key]
            else:
                return None
        return found

    def take(self, stage: str, *keys: str | int) -> Plain | None:
        """The value at that place, which from now on is a fact; None where there is nothing, or no single value."""
        value = self.look(stage, *keys)
        if not isinstance(value, bool | int | float | str):
            return None
        fact = Fact(value=value, file=self._files[stage], pointer=pointer(*keys), sha256=self._sha256[stage])
        self.taken[".".join(map(str, (stage, *keys)))] = fact
        return value

    def sources(self) -> dict[str, tuple[str, str]]:
        """Stage → file and SHA-256, of the reports that a fact was taken of."""
        used = {fact.file for fact in self.taken.values()}
        return {stage: (file, self._sha256[stage]) for stage, file in self._files.items() if file in used}


def pointer(*keys: str | int) -> str:
    """The JSON pointer of a place (RFC 6901)."""
    return "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in keys)


def resolve(document: Any, pointer: str) -> Any:
    """What a JSON pointer points at.

    Raises
        KeyError, IndexError  where the document has no such place.
    """
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        document = document[int(key)] if isinstance(document, list) else document[key]
    return document
