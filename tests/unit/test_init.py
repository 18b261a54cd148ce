"""`tunewright init`: what it writes for a stranger's file passes `tunewright check`, or nothing is written."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from flows.check import faults
from flows.init import Wishes, init
from tests.conftest import Project
from tunewright.errors import UserError
from tunewright.params import load_params

WORDS = ["the", "film", "plot", "scene", "was", "very", "dull", "bright", "slow", "long", "story", "actor", "ending"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project.copy(tmp_path_factory.mktemp("init"))


@pytest.fixture
def here(shared: Project, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The project's folder as the working folder, as git has it."""
    monkeypatch.chdir(shared.root)
    yield shared.root
    shared.run("git", "reset", "--quiet", "--hard")
    shared.run("git", "clean", "--quiet", "-ffdx")


def rows(count: int, **columns: Callable[[int], Any]) -> list[dict[str, Any]]:
    """Rows with a text of ten words each, and further columns."""
    chance = random.Random(0)
    return [
        {"text": " ".join(chance.choices(WORDS, k=10)) + f" {row}"}
        | {name: value(row) for name, value in columns.items()}
        for row in range(count)
    ]


def as_csv(found: list[dict[str, Any]], delimiter: str = ",", header: bool = True) -> str:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(found[0]), delimiter=delimiter)
    if header:
        writer.writeheader()
    writer.writerows(found)
    return stream.getvalue()


def label(row: int) -> str:
    return "ham" if row % 3 else "spam"


def written() -> Any:
    return YAML(typ="safe", pure=True).load(Path("params.yaml").read_text(encoding="utf-8"))


def status(project: Project) -> list[str]:
    return project.run("git", "status", "--porcelain", "--untracked-files=all").stdout.split("\n")[:-1]


def test_a_csv_file_with_every_kind_of_column(here: Path, tmp_path: Path) -> None:
    found = rows(
        3000, key=lambda row: f"k{row}", kind=label, user=lambda row: f"u{row % 300}", sex=lambda row: "fm"[row % 2]
    )
    (tmp_path / "My mails.csv").write_text(as_csv(found, ";"), encoding="utf-8")
    told = init(tmp_path / "My mails.csv", Wishes(label_column="kind", license="CC0-1.0"))
    assert "data/raw/My_mails/My mails.csv" in told
    assert (tmp_path / "My mails.csv").read_bytes() == (here / "data/raw/My_mails/My mails.csv").read_bytes()
    assert faults() == []
    params = written()
    assert params["task"] == {"type": "text_classification", "labels": ["ham", "spam"]}
    assert params["paths"]["raw"] == "data/raw/My_mails"
    assert params["ingest"]["sources"] == [
        {
            "name": "My_mails",
            "path": "My mails.csv",
            "format": "csv",
            "license": "CC0-1.0",
            "delimiter": ";",
            "id_column": "key",
            "text_column": "text",
            "label_column": "kind",
            "keep_columns": ["user"],
        }
    ]
    prepare = params["prepare"]
    assert (prepare["split_by"], prepare["group_column"], prepare["time_column"]) == ("group", "user", None)
    assert (params["validate"]["min_rows"], params["validate"]["max_rows"]) == (2700, 30_000)
    assert params["audit_data"]["sensitive_features"] == []
    # Two of three rows are ham: 0.667 and a tenth of the rest.
    assert params["verdict"]["min_metrics"] == {"accuracy": 0.7, "macro_f1": 0.46}
    assert params["paths"]["drift_reference"] == "data/accepted_My_mails.json"
    assert json.loads((here / "data/accepted_My_mails.json").read_text()) == {"accepted": None}
    text = (here / "params.yaml").read_text(encoding="utf-8")
    assert "# init: `sex` may be one: to compare its groups" in text
    assert "# Where every file stands. dvc.yaml refers to these" in text
    assert "license: CC0-1.0\n" in text


def test_a_file_without_a_header_gets_names_by_role(here: Path, tmp_path: Path) -> None:
    found = [{"n": row, "y": label(row), "t": one["text"]} for row, one in enumerate(rows(200))]
    (tmp_path / "data.tsv").write_text(as_csv(found, "\t", header=False), encoding="utf-16")
    init(tmp_path / "data.tsv", Wishes(name="mails"))
    (source,) = written()["ingest"]["sources"]
    assert source["column_names"] == ["id", "label", "text"]
    assert (source["format"], source["encoding"]) == ("tsv", "utf-16")
    assert (source["id_column"], source["text_column"], source["label_column"]) == ("id", "text", "label")
    assert written()["prepare"]["split"] == {"train": 0.7, "validation": 0.15, "test": 0.15}


def test_a_score_dates_entities_and_rows_that_go(here: Path, tmp_path: Path) -> None:
    found = rows(
        2400,
        rating=lambda row: (row % 10 - 5) * 0.8,
        when=lambda row: f"2024-{row // 200 + 1:02d}-{row % 200 // 10 + 1:02d}",
    )
    found[2399]["text"] = ""
    for row in range(100, 200):
        found[row]["text"] += " &amp; so on"
    found[2397]["rating"] = ""
    lines = as_csv(found).replace("\r\n", "\n").splitlines(keepends=True)
    lines.insert(50, "ragged\n")
    with gzip.open(tmp_path / "scores.csv.gz", "wt", encoding="utf-8") as stream:
        stream.writelines(lines)
    init(tmp_path / "scores.csv.gz", Wishes())
    params = written()
    (source,) = params["ingest"]["sources"]
    assert source["path"] == "scores.csv.gz"
    assert source["label_bins"] == [{"label": "negative", "max": -0.5}, {"label": "positive", "min": 0.5}]
    assert source["keep_columns"] == ["when"]
    # One of 2401 records is ragged, and half as many more are let through: 0.00062, rounded up.
    assert params["ingest"]["max_rejected_fraction"] == 0.001
    assert params["validate"]["text_min_length"] == 0
    assert 0 < params["validate"]["max_null_fraction"] <= 0.001
    prepare = params["prepare"]
    assert prepare["normalise"][0] == "html_entities"
    assert (prepare["split_by"], prepare["time_column"]) == ("time", "when")
    # 240 days, 20 a month, of nine rows each, less two: 0.8 and 0.88 of 2158 rows are behind 192 and 212 of them.
    assert (prepare["validation_from"], prepare["test_from"]) == ("2024-10-13", "2024-11-13")
    # 240 ratings are 0, and two rows lack text or rating: 0.1008; a tenth more may be near duplicates.
    assert params["gate_data"]["max_dropped_fraction"] == 0.21


def test_json_lines_a_folder_of_texts_and_a_file_that_is_in_place(here: Path, tmp_path: Path) -> None:
    found = rows(120, id=lambda row: row, label=label)
    path = here / "data/raw/mine/deep/rows.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in found))
    init(path, Wishes())
    assert written()["paths"]["raw"] == "data/raw/mine"
    assert written()["ingest"]["sources"][0]["path"] == "deep/rows.jsonl"

    for row, one in enumerate(found):
        file = tmp_path / "texts" / label(row) / f"{row}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(one["text"])
    init(tmp_path / "texts", Wishes())  # what init wrote itself may be written again
    (source,) = written()["ingest"]["sources"]
    assert (source["path"], source["format"], source["text_column"], source["label_column"]) == (
        "texts", "text_folder", "text", "label",
    )  # fmt: skip
    assert "id_column" not in source
    assert len(list((here / "data/raw/texts/texts").rglob("*.txt"))) == 120
    assert "data/raw/mine" not in (here / "params.yaml").read_text()


def test_edits_are_not_lost(shared: Project, here: Path, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text(as_csv(rows(100, label=label)))
    edited = (here / "params.yaml").read_text().replace("seed: 42", "seed: 43")
    (here / "params.yaml").write_text(edited)
    with pytest.raises(UserError, match=r"holds edits that are not committed.*--force"):
        init(tmp_path / "data.csv", Wishes())
    assert status(shared) == [" M params.yaml"]
    told = init(tmp_path / "data.csv", Wishes(force=True))
    assert "params.before-init.yaml" in told
    assert (here / "params.before-init.yaml").read_text() == edited
    assert load_params().seed == 43
    # An edit of what init wrote is an edit.
    (here / "params.yaml").write_text((here / "params.yaml").read_text().replace("seed: 43", "seed: 44"))
    with pytest.raises(UserError, match="holds edits"):
        init(tmp_path / "data.csv", Wishes())


def test_what_an_earlier_init_said_is_gone(shared: Project, here: Path, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text(as_csv(rows(100, label=label)))
    first = init(tmp_path / "data.csv", Wishes(name="alpha"))
    shared.run("git", "add", "--all")
    shared.run("git", "commit", "--quiet", "--message", "one")
    text = (here / "params.yaml").read_text()
    assert first != init(tmp_path / "data.csv", Wishes(name="omega"))
    assert (here / "params.yaml").read_text().replace("omega", "alpha") == text
    shared.run("git", "reset", "--quiet", "--hard", "HEAD~")


@pytest.mark.parametrize(
    ("content", "wishes", "message"),
    [
        (as_csv(rows(100, label=lambda _: "same")), Wishes(), "data.csv: column 'label' holds one label only"),
        (as_csv(rows(100, n=lambda row: row)), Wishes(), "data.csv: no column looks like a label"),
        ("id,label\n" + "".join(f"{row},{row % 2}\n" for row in range(90)), Wishes(), "no column looks like a text"),
        (as_csv(rows(20, label=label)), Wishes(), "20 rows can be learned from, expected at least 30"),
        ("text,label\n", Wishes(), "holds no row"),
        (as_csv(rows(100, label=label)), Wishes(name="../up"), "--name: found '../up'"),
        (as_csv(rows(100, label=label)), Wishes(delimiter=";;"), "--delimiter: found ';;'"),
        (as_csv(rows(100, label=label)), Wishes(name="movie_reviews", model_name_or_path="a/b"), "model_revision"),
        (
            as_csv(rows(2100, label=label)) + "ragged\n" * 300,
            Wishes(),
            r"300 of 2,400 records can't be read as csv, utf-8 \(ragged_line 300\)",
        ),
        (
            as_csv(rows(100, label=label)),
            Wishes(model_name_or_path="package:no_such_package/model"),
            "nothing was written.*no_such_package is not installed",
        ),
    ],
)
def test_what_cannot_be_used_leaves_nothing_behind(
    shared: Project, here: Path, tmp_path: Path, content: str, wishes: Wishes, message: str
) -> None:
    (tmp_path / "data.csv").write_text(content)
    with pytest.raises(UserError, match="(?s)" + message):
        init(tmp_path / "data.csv", wishes)
    assert status(shared) == []
    assert not (here / "data/raw/data").exists()


def test_another_file_of_the_same_name_is_not_overwritten(here: Path, tmp_path: Path) -> None:
    (tmp_path / "movie_reviews.tsv").write_text(as_csv(rows(100, label=label), "\t"))
    with pytest.raises(UserError, match="another file of this name stands there"):
        init(tmp_path / "movie_reviews.tsv", Wishes())


def test_no_value_of_a_row_is_told(here: Path, tmp_path: Path) -> None:
    found = rows(100, label=label, email=lambda row: f"canary{row}@example.com", note=lambda row: f"canary-{row % 7}")
    for row, one in enumerate(found):
        one["text"] += f" canary{row}"
    (tmp_path / "data.csv").write_text(as_csv(found))
    told = init(tmp_path / "data.csv", Wishes())
    assert "canary" not in told
    assert "canary" not in (here / "params.yaml").read_text()
    (tmp_path / "data.csv").write_text(as_csv([one | {"label": ""} for one in found]))
    with pytest.raises(UserError) as refused:
        init(tmp_path / "data.csv", Wishes(name="other", label_column="text"))
    assert "canary" not in str(refused.value)
