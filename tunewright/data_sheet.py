"""The data sheet: DATA_SHEET.md beside the model card, on the data that the model was tuned on.

Its headings are those of Gebru et al. (2018, Datasheets for Datasets, https://arxiv.org/abs/1803.09010). What only
people know is asked for in `card.data`; the rest was counted.
"""

from __future__ import annotations

from typing import Any

from tunewright.markdown import escape, table
from tunewright.model_card import dropped, headed, sources, splits
from tunewright.telling import Telling


def data_sheet(telling: Telling, card: Any) -> str:
    """The whole DATA_SHEET.md. card: the section `card`."""
    data = card.data
    told = {
        "Motivation": [telling.asked(data.motivation)],
        "Composition": [_rows(telling), sources(telling), splits(telling), _missing(telling), _personal(telling)],
        "Collection process": [telling.asked(data.collection_process)],
        "Preprocessing, cleaning, labelling": [telling.asked(data.labelling), _normalised(telling), dropped(telling)],
        "Uses": [telling.asked(data.uses)],
        "Distribution": [telling.asked(data.distribution)],
        "Maintenance": [telling.asked(data.maintenance)],
    }
    name = " and ".join(telling.name(source["name"]) for source in telling.facts.look("ingest", "sources"))
    return "\n\n".join([f"# Data sheet: {name}", *headed(told), telling.footnotes()]) + "\n"


def _rows(telling: Telling) -> str:
    raw, kept = telling.figure("ingest", "rows", "rows_in"), telling.figure("prepare", "rows", "rows_kept")
    texts = telling.figure("prepare", "distinct_texts")
    split_by = telling.words("prepare", "split_by")
    note = telling.note("ingest") + telling.note("prepare")
    return f"Raw rows: {raw}; rows in the splits: {kept}; different texts: {texts}; split by {split_by}. {note}"


def _missing(telling: Telling) -> str:
    rows = [
        [telling.words("ingest", "sources", at, "name"), telling.name(column), figure]
        for at, source in enumerate(telling.facts.look("ingest", "sources"))
        for column in source["null_counts"]
        if (figure := telling.figure("ingest", "sources", at, "null_counts", column)) != "0"
    ]
    return table(["source", "column", "rows without a value"], rows)


def _personal(telling: Telling) -> str:
    rows = [
        [
            escape(kind.replace("_", " ")),
            telling.figure("prepare", "privacy", "kinds", kind, "rows"),
            telling.words("prepare", "privacy", "kinds", kind, "policy"),
        ]
        for kind in telling.facts.look("prepare", "privacy", "kinds") or {}
    ]
    return table(["personal data and secrets", "rows", "policy"], rows)


def _normalised(telling: Telling) -> str:
    rows = [
        [escape(step.replace("_", " ")), telling.figure("prepare", "normalised", step)]
        for step in telling.facts.look("prepare", "normalised") or {}
    ]
    rows += [
        [words, telling.figure("prepare", *place)]
        for words, place in (
            ("texts with two labels", ("conflicting_texts",)),
            ("texts that stand in two splits", ("overlapping_rows",)),
            ("near duplicates", ("near_duplicates", "rows")),
        )
    ]
    return table([f"step {telling.note('prepare')}", "rows"], rows)
