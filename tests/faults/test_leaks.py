"""Leaks are seen on the way from a raw file to the gate (FAULTS 29, its contamination part, and 31).

Real reviews with the fault put in, real DVC, up to `gate_data`.
"""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Project, reviews
from tunewright.files import read_json

Row = dict[str, str]


def rows(count: int) -> list[Row]:
    """About `count` real reviews with their labels, in an order that tells nothing."""
    found = []
    for line in reviews(count).decode().splitlines():
        identity, rating, text = line.split("\t")
        found.append({"id": identity, "text": text, "label": "positive" if float(rating) > 0 else "negative"})
    random.Random(0).shuffle(found)
    return found


def gated(folder: Path, table: list[Row], keep_columns: list[str], **limits: Any) -> Project:
    """A project over these rows, after `dvc repro gate_data`."""
    project = Project.copy(folder)
    written = io.StringIO()
    writer = csv.DictWriter(written, list(table[0]))
    writer.writeheader()
    writer.writerows(table)
    raw = project.root / "data/raw/movie_reviews"
    (raw / "movie_reviews.tsv").unlink()
    (raw / "reviews.csv").write_text(written.getvalue(), encoding="utf-8")
    source = {"name": "reviews", "path": "reviews.csv", "format": "csv", "license": "MIT", "id_column": "id"}
    source |= {"text_column": "text", "label_column": "label", "keep_columns": keep_columns}

    def edit(params: Any) -> None:
        params["ingest"]["sources"] = [source]
        params["validate"].update(min_rows=100, text_max_length=100_000)
        params["gate_data"].update(max_label_share_gap=0.5, max_dropped_fraction=1.0)
        params["check_leaks"].update(limits)

    project.edit(edit)
    project.commit()
    project.run("dvc", "repro", "gate_data", check=False)
    return project


def findings(project: Project, measure: str) -> list[dict[str, str]]:
    """What check_leaks says of one measure."""
    report = read_json(project.root / "reports/check_leaks.json")
    return [found for found in report["findings"] if found["rule"].startswith(f"check_leaks.{measure}_")]


def test_a_label_that_can_be_read_off_is_warned_of_with_its_features(tmp_path: Path) -> None:
    """FAULTS 31: the label's name in the text, and metadata that give it away."""
    table = rows(1200)
    chance = random.Random(1)
    for row in table:
        if row["label"] == "positive" and chance.random() < 0.3:
            row["text"] += " (rated Positive)"
        honest = chance.random() < 0.9
        row["desk"] = "north" if (row["label"] == "positive") == honest else "south"
        row["shelf"] = str(chance.randrange(9))
    project = gated(tmp_path, table, ["desk", "shelf"])

    (names,) = findings(project, "label_name")
    assert names["verdict"] == "warn"
    assert names["found"].startswith("`positive`: its name in ")
    (metadata,) = findings(project, "metadata")
    assert metadata["verdict"] == "warn"
    assert "; carried by `desk` (accuracy 0." in metadata["found"]
    assert "shelf" not in metadata["found"]
    found = read_json(project.root / "reports/check_leaks.json")["metadata"]
    assert found["accuracy"]["value"] == pytest.approx(0.9, abs=0.08)

    gate = read_json(
        project.root / "reports/gate_data.json"
    )  # a warning closes nothing, and stands in the gate's report
    assert names in gate["findings"]
    assert metadata in gate["findings"]


def test_test_rows_that_are_passages_of_train_close_the_gate(tmp_path: Path) -> None:
    """FAULTS 29: what no comparison of whole texts finds, because a passage is unlike the text that it is from."""
    found = [row["text"] for row in rows(2000)]
    groups = [found[at : at + 5] for at in range(0, len(found) - 4, 5)]
    labels = ["negative", "positive"] * len(groups)
    whole = [{"id": f"whole-{at}", "text": " ".join(group)} for at, group in enumerate(groups)]
    passages = [{"id": f"passage-{at}", "text": group[2]} for at, group in enumerate(groups)]
    table = [row | {"label": label} for label, row in zip(labels, [*whole, *passages], strict=False)]
    project = gated(tmp_path, table, [])

    report = read_json(project.root / "reports/check_leaks.json")["contamination"]["test"]
    assert report["contaminated"] / report["rows"] > 0.2
    for row in report["worst"]:
        assert row["overlap"] >= 0.7
        assert row["train_row_id"] == row["row_id"].replace("passage", "whole")
    assert [found["verdict"] for found in findings(project, "contamination")] == ["fail", "fail"]
    story = read_json(project.run_file("gate_data"))
    assert story["outcome"] == "gate_closed"
    assert "check_leaks.contamination_fail: found test: " in story["message"]
    assert not (project.root / "reports/data.passed").exists()
