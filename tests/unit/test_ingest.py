"""ingest: any source → rows, every row accounted for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from stages.ingest import IngestParams, IngestPaths, IngestReport, check, run
from tunewright.errors import UserError
from tunewright.task import TaskType
from tunewright.task_types import multi_label_classification as multi_label
from tunewright.task_types.text_classification import Task, TaskParams

CSV = b"id,review,stars,who\n1,good,pos,a\n2,bad,neg,\n"


def source(**changes: Any) -> dict[str, Any]:
    base = {
        "name": "reviews",
        "path": "reviews.csv",
        "format": "csv",
        "license": "MIT",
        "text_column": "review",
        "label_column": "stars",
    }
    return base | changes


def parameters(*sources: dict[str, Any], **changes: Any) -> IngestParams:
    section = {"max_rejected_fraction": 0.0, "control_characters": "reject", "max_text_characters": 1000}
    return IngestParams.model_validate(section | changes | {"sources": list(sources)})


def locations(folder: Path) -> IngestPaths:
    return IngestPaths(
        raw=folder / "raw",
        hub_data=folder / "hub",
        ingested=folder / "ingested.parquet",
        quarantine=folder / "quarantine.parquet",
    )


def ingest(
    folder: Path,
    *sources: dict[str, Any],
    labels: tuple[str, ...] = ("neg", "pos"),
    multi: bool = False,
    **changes: Any,
) -> IngestReport:
    task: TaskType = Task(TaskParams(type="text_classification", labels=list(labels)))
    if multi:
        task = multi_label.Task(multi_label.TaskParams(type="multi_label_classification", labels=list(labels)))
    return run(locations(folder), parameters(*sources, **changes), task)


def rows(folder: Path, name: str = "ingested") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(folder / f"{name}.parquet").to_pylist()
    return found


def put(folder: Path, data: bytes, name: str = "reviews.csv") -> Path:
    path = folder / "raw" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


def refused(folder: Path, data: bytes, **changes: Any) -> str:
    """The message with which a file is refused; nothing is written."""
    put(folder, data, changes.get("path", "reviews.csv"))
    with pytest.raises(UserError) as caught:
        ingest(folder, source(**changes))
    assert not (folder / "ingested.parquet").exists()
    return str(caught.value)


def test_rows_ids_and_account(tmp_path: Path) -> None:
    put(tmp_path, CSV)
    report = ingest(tmp_path, source(id_column="id", keep_columns=["who"]))
    assert rows(tmp_path) == [
        {"row_id": "reviews:1", "source": "reviews", "line": 2, "text": "good", "label": "pos", "who": "a"},
        {"row_id": "reviews:2", "source": "reviews", "line": 3, "text": "bad", "label": "neg", "who": None},
    ]
    assert report.rows is not None
    assert (report.rows.rows_in, report.rows.rows_kept, report.rows.dropped) == (2, 2, {})
    found = report.sources[0]
    assert found.label_counts == {"neg": 1, "pos": 1}
    assert found.null_counts == {"text": 0, "label": 0, "who": 1}
    assert found.license == "MIT"


def test_several_sources_of_every_format_give_one_table(tmp_path: Path) -> None:
    put(tmp_path, CSV)
    put(tmp_path, b"good\tpos\n", "reviews.tsv")
    put(tmp_path, b'{"review": "good", "stars": "pos", "who": "b"}\n\n{"stars": null, "review": "x"}', "reviews.jsonl")
    pq.write_table(pa.table({"review": ["good"], "stars": ["pos"]}), tmp_path / "raw" / "reviews.parquet")
    report = ingest(
        tmp_path,
        source(keep_columns=["who"]),
        source(name="t", path="reviews.tsv", format="tsv", column_names=["review", "stars"]),
        source(name="j", path="reviews.jsonl", format="jsonl", keep_columns=["who"]),
        source(name="p", path="reviews.parquet", format="parquet"),
    )
    table = rows(tmp_path)
    assert [(row["source"], row["line"], row["label"], row["who"]) for row in table] == [
        ("reviews", 2, "pos", "a"),
        ("reviews", 3, "neg", None),
        ("t", 1, "pos", None),
        ("j", 1, "pos", "b"),
        ("j", 3, None, None),
        ("p", 1, "pos", None),
    ]
    assert len({row["row_id"] for row in table}) == 6
    assert [found.rows.rows_in for found in report.sources] == [2, 1, 2, 1]


def test_a_csv_file_may_have_another_delimiter(tmp_path: Path) -> None:
    put(tmp_path, b'review;stars\n"good; really";pos\n3,5 of 4;neg\n')
    ingest(tmp_path, source(delimiter=";"))
    assert [(row["text"], row["label"]) for row in rows(tmp_path)] == [("good; really", "pos"), ("3,5 of 4", "neg")]
    with pytest.raises(ValidationError, match="a `delimiter` with `format: csv` only"):
        parameters(source(format="tsv", delimiter=";"))


def test_the_same_bytes_twice_and_rows_of_a_removed_source_are_gone(tmp_path: Path) -> None:
    put(tmp_path, CSV)
    put(tmp_path, CSV, "more.csv")
    ingest(tmp_path, source())
    first = (tmp_path / "ingested.parquet").read_bytes()
    ingest(tmp_path, source(), source(name="more", path="more.csv"))
    assert {row["source"] for row in rows(tmp_path)} == {"reviews", "more"}
    ingest(tmp_path, source())
    assert (tmp_path / "ingested.parquet").read_bytes() == first


def test_equal_records_get_ordinals_and_keep_their_ids_when_rows_are_added(tmp_path: Path) -> None:
    put(tmp_path, b"review,stars\ngood,pos\ngood,pos\n")
    ingest(tmp_path, source())
    before = [row["row_id"] for row in rows(tmp_path)]
    assert before[0][:-1] == before[1][:-1]
    assert [row_id[-2:] for row_id in before] == ["-0", "-1"]
    put(tmp_path, b"review,stars\nbad,neg\ngood,pos\ngood,pos\n")
    ingest(tmp_path, source())
    assert [row["row_id"] for row in rows(tmp_path)][1:] == before


def test_a_record_has_the_same_id_from_csv_and_jsonl(tmp_path: Path) -> None:
    put(tmp_path, b"review,stars\ngood,1.0\n")
    put(tmp_path, b'{"stars": 1.0, "review": "good"}\n', "reviews.jsonl")
    ingest(tmp_path, source(), labels=("1.0", "0"))
    first = rows(tmp_path)
    ingest(tmp_path, source(path="reviews.jsonl", format="jsonl"), labels=("1.0", "0"))
    assert rows(tmp_path)[0]["row_id"] == first[0]["row_id"]


@pytest.mark.parametrize(
    "data",
    [
        CSV.replace(b"\n", b"\r\n"),
        CSV.replace(b"\n", b"\r"),
        b"\xef\xbb\xbf" + CSV,
        CSV + b"\n\n",
        CSV.rstrip(b"\n"),
    ],
    ids=["crlf", "bare cr", "byte order mark", "blank lines at the end", "no line end at the end"],
)
def test_line_ends_and_byte_order_mark_change_no_row(tmp_path: Path, data: bytes) -> None:
    put(tmp_path, CSV)
    ingest(tmp_path, source())
    plain = (tmp_path / "ingested.parquet").read_bytes()
    put(tmp_path, data)
    ingest(tmp_path, source())
    assert (tmp_path / "ingested.parquet").read_bytes() == plain


def test_quoted_line_ends_and_unicode_separators_stay_in_their_field(tmp_path: Path) -> None:
    put(tmp_path, 'review,stars\n"two\r\nlines",pos\nsep\u2028\u0085\x0carator,neg\n'.encode())
    ingest(tmp_path, source())
    assert [(row["line"], row["text"]) for row in rows(tmp_path)] == [
        (2, "two\nlines"),
        (4, "sep\u2028\u0085\x0carator"),
    ]


def test_quoting_none_takes_quotes_as_they_stand(tmp_path: Path) -> None:
    put(tmp_path, b'review\tstars\n"Great\tpos\n""\tneg\n', "reviews.tsv")
    ingest(tmp_path, source(path="reviews.tsv", format="tsv", quoting="none"))
    assert [row["text"] for row in rows(tmp_path)] == ['"Great', '""']


def test_labels_stay_the_strings_they_are(tmp_path: Path) -> None:
    labels = ("01", "1", "NA", "None", "nan", "null", "1.0")
    put(tmp_path, ("review,stars\n" + "".join(f"t,{label}\n" for label in labels)).encode())
    ingest(tmp_path, source(), labels=labels)
    assert [row["label"] for row in rows(tmp_path)] == list(labels)


def test_numbers_of_jsonl_and_parquet_become_the_digits_of_the_file(tmp_path: Path) -> None:
    put(
        tmp_path,
        b'{"review": "a", "stars": 1}\n{"review": "b", "stars": 1.50}\n{"review": "c", "stars": true}\n',
        "r.jsonl",
    )
    ingest(tmp_path, source(path="r.jsonl", format="jsonl"), labels=("1", "1.50", "true"))
    assert [row["label"] for row in rows(tmp_path)] == ["1", "1.50", "true"]
    pq.write_table(pa.table({"review": ["a", "b"], "stars": [1, 2]}), tmp_path / "raw" / "r.parquet")
    ingest(tmp_path, source(path="r.parquet", format="parquet"), labels=("1", "2"))
    assert [row["label"] for row in rows(tmp_path)] == ["1", "2"]


def test_an_empty_label_is_null_and_an_empty_text_is_empty(tmp_path: Path) -> None:
    put(tmp_path, b"review,stars\n,pos\ngood,\n")
    report = ingest(tmp_path, source())
    assert [(row["text"], row["label"]) for row in rows(tmp_path)] == [("", "pos"), ("good", None)]
    assert report.sources[0].null_counts == {"text": 0, "label": 1}
    assert report.sources[0].label_counts == {"neg": 0, "pos": 1}


def test_bins_have_inclusive_ends_and_drop_what_lies_in_none(tmp_path: Path) -> None:
    put(tmp_path, b"review,stars\na,-0.5\nb,-0.49\nc,0\nd,0.5\ne,9\nf,\n")
    bins = [{"label": "neg", "max": -0.5}, {"label": "pos", "min": 0.5, "max": 8.0}]
    report = ingest(tmp_path, source(label_bins=bins))
    assert [(row["text"], row["label"]) for row in rows(tmp_path)] == [("a", "neg"), ("d", "pos"), ("f", None)]
    assert report.rows is not None
    assert (report.rows.rows_in, report.rows.rows_kept, report.rows.dropped) == (6, 3, {"label_in_no_bin": 3})


def test_raw_may_be_one_file(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(CSV)
    ingest(tmp_path, source(path="raw"))
    assert len(rows(tmp_path)) == 2
    with pytest.raises(UserError, match=r"paths.raw is a file, so a source's `path` must be 'raw'; found 'other'"):
        ingest(tmp_path, source(path="other"))


def test_a_named_encoding_is_used_and_a_wrong_one_is_refused_with_its_place(tmp_path: Path) -> None:
    put(tmp_path, "review,stars\nnaïve,pos\n".encode("cp1252"))
    ingest(tmp_path, source(encoding="cp1252"))
    assert rows(tmp_path)[0]["text"] == "naïve"
    (tmp_path / "ingested.parquet").unlink()
    # "review,stars\n" is 13 bytes, "na" two more: the ï is byte 16, in line 2.
    message = refused(tmp_path, "review,stars\nnaïve,pos\n".encode("cp1252"))
    assert "reviews.csv:2: byte 16 (0xef) is not valid utf-8" in message
    assert "it looks like UTF-16" in refused(tmp_path, "review,stars\na,pos\n".encode("utf-16"))
    put(tmp_path, "review,stars\na,pos\n".encode("utf-16"))
    ingest(tmp_path, source(encoding="utf-16"))
    assert rows(tmp_path)[0]["text"] == "a"


@pytest.mark.parametrize(
    ("data", "changes", "expected"),
    [
        (b"", {}, "reviews.csv: holds no row."),
        (b"review,stars\n", {}, "reviews.csv: holds no row but its header (review, stars)."),
        (b"review,stars\na\0b,pos\n", {}, "reviews.csv:2: text holds the control character U+0000 at its character 2"),
        (b"review,stars\na,pos\nb,neg,c\n", {}, "reviews.csv:3: found 3 fields, expected 2 (review, stars)"),
        (b'review,stars\na,pos\n"b,neg\n', {}, "reviews.csv:3: the record that starts in line 3 ends with"),
        (b"review,review\na,pos\n", {}, "the header names review more than once"),
        (CSV, {"text_column": "reviw"}, "no column 'reviw' (ingest.sources[0].text_column). Did you mean 'review'?"),
        (CSV, {"text_column": "reviw"}, "Columns found: id, review, stars, who."),
        (CSV, {"keep_columns": ["zzz"]}, "no column 'zzz' (ingest.sources[0].keep_columns)."),
        (b"review,stars\na,pos\nb,odd\nc,odd\n", {}, "Labels that task.labels lacks: 'odd' (2 rows)"),
        (b"review,stars\na,pos\nb,odd\nc,odd\n", {}, "reviews.csv:3: stars holds 'odd', task.labels are neg, pos"),
        (
            b"id,review,stars\n7,a,pos\n8,b,neg\n7,c,pos\n",
            {"id_column": "id"},
            "1 row repeats an id of column 'id': lines 2 and 4 (two texts)",
        ),
        (b"id,review,stars\n,a,pos\n", {"id_column": "id"}, "reviews.csv:2: id is empty"),
        (
            b"review,stars\na,1\nb,many\n",
            {"label_bins": [{"label": "pos", "min": 0.0}]},
            "reviews.csv:3: stars holds 'many', expected a number",
        ),
        (
            CSV,
            {"label_bins": [{"label": "good", "min": 0.0}]},
            "label_bins of reviews names good; task.labels are neg, pos",
        ),
        (CSV, {"keep_columns": ["text"]}, "keep_columns names text, which every row has already"),
        (b'{"review": "a", "stars": "pos"}\n{"review": "b"', {"path": "r.jsonl", "format": "jsonl"}, "r.jsonl:2: not"),
        (b'{"review": "b"', {"path": "r.jsonl", "format": "jsonl"}, "; the line is cut off"),
        (b'["a"]\n', {"path": "r.jsonl", "format": "jsonl"}, "r.jsonl:1: found a JSON list, expected an object"),
        (b'{"review": NaN}\n', {"path": "r.jsonl", "format": "jsonl"}, "NaN is no JSON number"),
        (
            b'{"review": "\\ud800", "stars": "pos"}\n',
            {"path": "r.jsonl", "format": "jsonl"},
            "r.jsonl:1: not valid JSON (half of a surrogate pair)",
        ),
        (
            b'{"review": "a\\u0000", "stars": "pos"}\n',
            {"path": "r.jsonl", "format": "jsonl"},
            "r.jsonl:1: text holds the control character U+0000 at its character 2",
        ),
        (
            b'{"review": ["a"], "stars": "pos"}\n',
            {"path": "r.jsonl", "format": "jsonl"},
            "r.jsonl:1: text holds a list, expected text",
        ),
        (
            b"PAR1 and no footer",
            {"path": "r.parquet", "format": "parquet"},
            "r.parquet: can't be read as parquet: Parquet magic bytes not found",
        ),
    ],
)
def test_a_broken_file_is_refused_with_its_place(
    tmp_path: Path, data: bytes, changes: dict[str, Any], expected: str
) -> None:
    assert expected in refused(tmp_path, data, **changes)


def test_a_cut_off_parquet_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"review": ["a"] * 100, "stars": ["pos"] * 100}), tmp_path / "whole.parquet")
    data = (tmp_path / "whole.parquet").read_bytes()
    assert "r.parquet: can't be read as parquet: Parquet magic bytes not found" in refused(
        tmp_path, data[: len(data) // 2], path="r.parquet", format="parquet"
    )


def test_a_missing_file_and_a_symbolic_link_are_refused(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    with pytest.raises(UserError, match=r"reviews\.csv: no such file"):
        ingest(tmp_path, source())
    (tmp_path / "secret.csv").write_bytes(CSV)
    (tmp_path / "raw" / "reviews.csv").symlink_to(tmp_path / "secret.csv")
    with pytest.raises(UserError, match="reached by a symbolic link"):
        ingest(tmp_path, source())
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "reviews.csv").write_bytes(CSV)
    (tmp_path / "raw" / "inner").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="reached by a symbolic link"):
        ingest(tmp_path, source(path="inner/reviews.csv"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"path": "../secret.csv"}, "a path inside paths.raw"),
        ({"path": "/etc/passwd"}, "a path inside paths.raw"),
        ({"format": "xlsx"}, "one of csv, hf_dataset, jsonl, parquet, text_folder, tsv"),
        ({"encoding": "utf8000"}, "an encoding that Python knows"),
        ({"column_names": ["a", "a"]}, "distinct names"),
        ({"label_bins": [{"label": "pos"}]}, "`min`, `max` or both"),
        (
            {"label_bins": [{"label": "pos", "min": 0.0}, {"label": "neg", "max": 0.0}]},
            "bins that do not overlap; `neg` and `pos` share 0.0",
        ),
        ({"colour": "red"}, "Extra inputs are not permitted"),
        ({"dataset": "tweets"}, "either `path` or `dataset`"),
        ({"format": None}, "a `format` with `path`, and none with `dataset`"),
        ({"label_bins": [{"label": "pos", "min": 0.0}], "label_mapping": {"a": "pos"}}, "`label_bins` without"),
    ],
)
def test_wrong_params_are_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected.replace("`", ".")):
        parameters(source(**changes))


def test_two_sources_of_one_name_are_refused() -> None:
    with pytest.raises(ValidationError, match="distinct names"):
        parameters(source(), source())


def test_the_quarantine_is_always_written(tmp_path: Path) -> None:
    put(tmp_path, CSV)
    ingest(tmp_path, source())
    table = pq.read_table(tmp_path / "quarantine.parquet")
    assert (table.num_rows, table.column_names) == (0, ["source", "file", "line", "reason", "detail", "record"])


def test_each_reason_is_counted_and_every_record_accounted_for(tmp_path: Path) -> None:
    lines = [
        '{"id": "1", "review": "good", "stars": "pos"}',
        '{"id": "", "review": "no id", "stars": "pos"}',
        '{"id": "3", "review": ["a"], "stars": "pos"}',
        '{"id": "4", "review": "unknown", "stars": "odd"}',
        '{"id": "5", "review": "0123456789-", "stars": "pos"}',
        '["no object"]',
        '{"id": "7", "review": "no label"}',
    ]
    put(tmp_path, "\n".join(lines).encode(), "r.jsonl")
    found = source(path="r.jsonl", format="jsonl", id_column="id")
    report = ingest(tmp_path, found, max_rejected_fraction=0.8, max_text_characters=10)
    assert report.rows is not None
    assert report.rows.model_dump() == {
        "rows_in": 7,
        "rows_kept": 2,
        "dropped": {
            "rejected_empty_id": 1,
            "rejected_wrong_type": 2,
            "rejected_unknown_label": 1,
            "rejected_text_too_long": 1,
        },
    }
    assert [(row["row_id"], row["label"]) for row in rows(tmp_path)] == [("reviews:1", "pos"), ("reviews:7", None)]
    quarantine = rows(tmp_path, "quarantine")
    assert [row["line"] for row in quarantine] == [2, 3, 4, 5, 6]
    assert quarantine[3] == {
        "source": "reviews",
        "file": str(tmp_path / "raw/r.jsonl"),
        "line": 5,
        "reason": "text_too_long",
        "detail": "text has 11 characters, expected at most 10",
        "record": lines[4],
    }


def test_the_fraction_is_of_one_source_and_its_edge_is_allowed(tmp_path: Path) -> None:
    put(tmp_path, b"review,stars\na,pos\nb\nc,neg\nd,pos\n")
    put(tmp_path, b"review,stars\n" + b"a,pos\n" * 100, "more.csv")
    sources = (source(name="more", path="more.csv"), source())
    ingest(tmp_path, *sources, max_rejected_fraction=0.25)
    assert len(rows(tmp_path)) == 103
    with pytest.raises(UserError, match=r"1 of 4 records are rejected \(ragged_line 1\)"):
        ingest(tmp_path, *sources, max_rejected_fraction=0.24)


def test_no_message_quotes_a_text(tmp_path: Path) -> None:
    put(tmp_path, b'review,stars\nSECRET one,pos,x\n"SECRET two" x,pos\nSECRET three\0,pos\nSECRET four,odd\n')
    with pytest.raises(UserError) as caught:
        ingest(tmp_path, source())
    assert "4 of 4 records are rejected" in str(caught.value)
    assert "SECRET" not in str(caught.value)
    put(
        tmp_path,
        b'{"review": "SECRET five", "stars": "pos"\n{"review": {"SECRET six": 1}, "stars": "pos"}\n',
        "r.jsonl",
    )
    with pytest.raises(UserError) as caught:
        ingest(tmp_path, source(path="r.jsonl", format="jsonl"))
    assert "2 of 2 records are rejected" in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_a_folder_of_text_files_gives_a_row_a_file(tmp_path: Path) -> None:
    put(tmp_path, b"not a record", "README.txt")
    for name, text in {"pos/b.txt": "fine\r\nfilm", "pos/a.txt": "\ufeffgood", "neg/deep/x.txt": "bad"}.items():
        file = tmp_path / "raw" / "texts" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode())
    (tmp_path / "raw/texts/pos/.hidden").write_bytes(b"\xff")
    (tmp_path / "raw/texts/LICENSE").write_bytes(b"not a record")
    folder = source(path="texts", format="text_folder", text_column="text", label_column="label")
    report = ingest(tmp_path, folder)
    assert [(row["row_id"], row["line"], row["text"], row["label"]) for row in rows(tmp_path)] == [
        ("reviews:neg/deep/x.txt", 1, "bad", "neg"),
        ("reviews:pos/a.txt", 1, "good", "pos"),
        ("reviews:pos/b.txt", 1, "fine\nfilm", "pos"),
    ]
    before = report.sources[0].sha256
    (tmp_path / "raw/texts/pos/c.txt").write_bytes(b"na\xefve")
    with pytest.raises(UserError, match=r"texts/pos/c\.txt:1: byte 3 \(0xef\) is not valid utf-8"):
        ingest(tmp_path, folder)
    report = ingest(tmp_path, folder, max_rejected_fraction=0.25)
    assert report.sources[0].sha256 != before
    assert rows(tmp_path, "quarantine")[0]["file"] == str(tmp_path / "raw/texts/pos/c.txt")
    (tmp_path / "raw/texts/pos/c.txt").unlink()
    (tmp_path / "raw/texts/pos/link.txt").symlink_to(tmp_path / "raw/README.txt")
    with pytest.raises(UserError, match="a symbolic link"):
        ingest(tmp_path, folder)


def test_a_saved_hugging_face_dataset_is_read_with_its_class_names(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    features = Features({"review": Value("string"), "stars": ClassLabel(names=["neg", "pos"])})
    data = Dataset.from_dict({"review": ["a", "b", "c"], "stars": [1, 0, -1]}, features=features)
    data.select([2, 0, 1]).save_to_disk(tmp_path / "raw/saved", num_shards=2)
    ingest(tmp_path, source(path="saved", format="hf_dataset"))
    expected = [(1, "c", None), (2, "a", "pos"), (3, "b", "neg")]
    assert [(row["line"], row["text"], row["label"]) for row in rows(tmp_path)] == expected
    data.to_parquet(tmp_path / "raw/saved.parquet")
    ingest(tmp_path, source(path="saved.parquet", format="parquet"))
    assert [row["label"] for row in rows(tmp_path)] == ["pos", "neg", None]
    # The same schema above names, as a tool may leave it: what is no number of a class stays as it is.
    table = pq.read_table(tmp_path / "raw/saved.parquet")
    named = pa.table({"review": ["a"], "stars": ["neg"]}).replace_schema_metadata(table.schema.metadata)
    pq.write_table(named, tmp_path / "raw/saved.parquet")
    ingest(tmp_path, source(path="saved.parquet", format="parquet"))
    assert [row["label"] for row in rows(tmp_path)] == ["neg"]
    DatasetDict({"train": data}).save_to_disk(tmp_path / "raw/splits")
    with pytest.raises(UserError, match=r"holds the splits train\. Name one of them in `path`.*as splits/train"):
        ingest(tmp_path, source(path="splits", format="hf_dataset"))
    ingest(tmp_path, source(path="splits/train", format="hf_dataset"))
    assert len(rows(tmp_path)) == 3
    (tmp_path / "raw/saved/state.json").write_text('{"_data_files": [{"filename": "../outside.arrow"}]}')
    with pytest.raises(UserError, match="names no files of its own folder"):
        ingest(tmp_path, source(path="saved", format="hf_dataset"))


def test_a_text_of_a_parquet_file_that_is_not_utf_8_is_one_rejected_row(tmp_path: Path) -> None:
    put(tmp_path, CSV)
    texts = pa.array([b"good", b"na\xefve", b"bad"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"review": texts, "stars": ["pos", "pos", "neg"]}), tmp_path / "raw/r.parquet")
    report = ingest(tmp_path, source(path="r.parquet", format="parquet"), max_rejected_fraction=0.4)
    assert [(row["line"], row["text"]) for row in rows(tmp_path)] == [(1, "good"), (3, "bad")]
    assert report.sources[0].rows.dropped == {"rejected_bad_encoding": 1}
    assert rows(tmp_path, "quarantine")[0]["line"] == 2


def test_a_fetched_dataset_is_read_by_its_name(tmp_path: Path) -> None:
    put(tmp_path, CSV)
    fetched = source(name="hub", dataset="tweets")
    del fetched["path"], fetched["format"]
    with pytest.raises(UserError, match=r"tweets\.parquet: not fetched\. Name tweets in fetch_data\.datasets"):
        ingest(tmp_path, fetched)
    task = Task(TaskParams(type="text_classification", labels=["neg", "pos"]))
    assert check(locations(tmp_path), parameters(fetched), task) == []
    (tmp_path / "hub").mkdir()
    pq.write_table(pa.table({"review": ["hi"], "stars": ["pos"]}), tmp_path / "hub/tweets.parquet")
    ingest(tmp_path, source(), fetched)
    assert [(row["source"], row["text"]) for row in rows(tmp_path)][-1] == ("hub", "hi")


def test_columns_are_renamed_before_they_are_looked_up_and_the_ids_are_those_of_the_new_names(tmp_path: Path) -> None:
    put(tmp_path, b"review,stars,who\ngood,pos,a\n")
    ingest(tmp_path, source(keep_columns=["who"]))
    plain = rows(tmp_path)
    put(tmp_path, b"Review Text,stars,who\ngood,pos,a\n")
    ingest(tmp_path, source(keep_columns=["who"], rename_columns={"Review Text": "review"}))
    assert rows(tmp_path) == plain
    with pytest.raises(UserError, match=r"no column 'Reviw' \(ingest.sources\[0\].rename_columns\)"):
        ingest(tmp_path, source(rename_columns={"Reviw": "review"}))
    with pytest.raises(UserError, match="two columns of one name"):
        ingest(tmp_path, source(rename_columns={"Review Text": "who", "stars": "review"}, label_column="who"))


def test_a_mapping_turns_raw_labels_into_ours_and_null_drops(tmp_path: Path) -> None:
    put(tmp_path, b"review,stars\na,1\nb,0\nc,2\nd,pos\n")
    report = ingest(tmp_path, source(label_mapping={0: "neg", "1": "pos", "2": None}))
    # What the mapping does not name stays as it is.
    assert [(row["text"], row["label"]) for row in rows(tmp_path)] == [("a", "pos"), ("b", "neg"), ("d", "pos")]
    assert report.rows is not None
    assert report.rows.dropped == {"label_mapped_to_null": 1}
    with pytest.raises(UserError, match=r"label_mapping of reviews names good; task.labels are neg, pos"):
        ingest(tmp_path, source(label_mapping={"1": "good"}))
    with pytest.raises(UserError, match=r"'2' \(1 rows\)"):
        ingest(tmp_path, source(label_mapping={"0": "neg", "1": "pos"}))


def test_several_labels_a_row_from_a_separator_and_from_a_list(tmp_path: Path) -> None:
    labels = ("joy", "anger", "fear")
    put(tmp_path, b"review,stars\na,fear; joy\nb,anger\nc,\nd,joy;joy;\n")
    report = ingest(tmp_path, source(label_separator=";"), labels=labels, multi=True)
    table = pq.read_table(tmp_path / "ingested.parquet")
    assert table.schema.field("label").type == pa.list_(pa.string())
    assert [row["label"] for row in rows(tmp_path)] == [["joy", "fear"], ["anger"], [], ["joy"]]
    assert report.sources[0].label_counts == {"joy": 2, "anger": 1, "fear": 1}
    assert report.sources[0].rows_without_label == 1
    lines = b'{"review": "a", "stars": [2, 0]}\n{"review": "b", "stars": []}\n{"review": "c", "stars": null}\n'
    put(tmp_path, lines, "r.jsonl")
    mapped = source(path="r.jsonl", format="jsonl", label_mapping={"0": "joy", "1": "anger", "2": "fear"}, name="j")
    report = ingest(tmp_path, source(label_separator=";"), mapped, labels=labels, multi=True)
    assert [row["label"] for row in rows(tmp_path)][4:] == [["joy", "fear"], [], None]
    assert report.sources[1].null_counts == {"text": 0, "label": 1}
    put(tmp_path, b"review,stars\na,joy;odd\n")
    with pytest.raises(UserError, match=r"stars holds 'odd', task.labels are joy, anger, fear"):
        ingest(tmp_path, source(label_separator=";"), labels=labels, multi=True)
    with pytest.raises(UserError, match="has a label_separator, but a row of text_classification has one label"):
        ingest(tmp_path, source(label_separator=";"))


def test_rows_are_written_in_row_groups(tmp_path: Path) -> None:
    put(tmp_path, b"review,stars\n" + b"a,pos\n" * 40_000)
    ingest(tmp_path, source())
    with pq.ParquetFile(tmp_path / "ingested.parquet") as file:
        groups = [file.metadata.row_group(place).num_rows for place in range(file.num_row_groups)]
    assert groups == [16_384, 16_384, 7_232]
    ids = [row["row_id"] for row in rows(tmp_path)]
    assert len(set(ids)) == 40_000
    assert ids[-1].endswith("-39999")


def test_check_sees_a_wrong_column_and_leaves_optional_keys_alone(tmp_path: Path) -> None:
    task = Task(TaskParams(type="text_classification", labels=["neg", "pos"]))
    put(tmp_path, CSV)
    put(
        tmp_path,
        b'{"review": "a", "stars": "pos"}\n' * 200 + b'{"review": "a", "stars": "pos", "who": "x"}\n',
        "r.jsonl",
    )
    found = check(
        locations(tmp_path),
        parameters(
            source(text_column="reviw"),
            source(name="j", path="r.jsonl", format="jsonl", keep_columns=["who"]),
            source(name="k", path="r.jsonl", format="jsonl", label_column="star"),
            source(name="m", path="missing.csv"),
        ),
        task,
    )
    assert len(found) == 3
    assert "Did you mean 'review'?" in found[0]
    assert "no column 'star' (ingest.sources[2].label_column). Did you mean 'stars'?" in found[1]
    assert "missing.csv: no such file" in found[2]
