"""docs/params.md lists every key of params.yaml: what it allows, and its value in the default recipe."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from ruamel.yaml import YAML

from tunewright.params import allowed, params_model, section_at

ROOT = Path(__file__).resolve().parents[2]
PARAMS: dict[str, Any] = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
MODEL = params_model(PARAMS["task"]["type"])


def keys(model: type[BaseModel], above: tuple[int | str, ...] = ()) -> Iterator[tuple[int | str, ...]]:
    """The place of every key that holds a value, in the order of the classes."""
    for name in model.model_fields:
        place = (*above, name)
        section, listed = section_at(MODEL, place), section_at(MODEL, (*place, 0))
        if section is None:
            yield place
        for inner, at in ((section, place), (listed, (*place, 0))):
            if inner is not None:
                yield from keys(inner, at)


def dotted(place: tuple[int | str, ...]) -> str:
    """`ingest.sources[].path`."""
    return "".join("[]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")


def here(place: tuple[int | str, ...]) -> str:
    """The value in params.yaml as YAML's flow style spells it; of a list of sections their number, of what is left
    out a dash."""
    value: Any = PARAMS
    for part in place:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return "–"
    if section_at(MODEL, (*place, 0)) is not None:
        return f"{len(value)} of them"
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def row(place: tuple[int | str, ...], meaning: str) -> str:
    """The key's line in the page."""
    words = allowed(MODEL, place).replace("|", "\\|")
    return f"| `{dotted(place)}` | {words} | {here(place)} | {meaning} |"


def test_every_key_has_its_line_in_the_page_and_no_line_is_left_over() -> None:
    lines = [
        line for line in (ROOT / "docs" / "params.md").read_text(encoding="utf-8").splitlines() if line[:2] == "| "
    ]
    found = {line.split(" | ")[0].removeprefix("| ").strip("`"): line for line in lines if line.startswith("| `")}
    wrong = []
    for place in keys(MODEL):
        line = found.pop(dotted(place), "")
        meaning = line.rpartition(" | ")[2].removesuffix(" |").strip()
        if line != row(place, meaning) or not meaning:
            wrong.append(row(place, meaning or "MEANING"))
    assert not wrong, "docs/params.md: write these lines, with a meaning\n" + "\n".join(wrong)
    assert not found, f"docs/params.md: lines of keys that do not exist: {', '.join(found)}"
