"""ingest: any source → rows, every row accounted for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from stages.ingest import IngestParams, IngestPaths, IngestReport, run
from tunewright.errors import UserError
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


def ingest(folder: Path, *sources: dict[str, Any], labels: tuple[str, ...] = ("neg", "pos")) -> IngestReport:
    task = Task(TaskParams(type="text_classification", labels=list(labels)))
    params = IngestParams.model_validate({"sources": list(sources)})
    return run(IngestPaths(raw=folder / "raw", ingested=folder / "ingested.parquet"), params, task)


def rows(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(folder / "ingested.parquet").to_pylist()
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
    assert "It looks like UTF-16" in refused(tmp_path, "review,stars\na,pos\n".encode("utf-16"))
    put(tmp_path, "review,stars\na,pos\n".encode("utf-16"))
    ingest(tmp_path, source(encoding="utf-16"))
    assert rows(tmp_path)[0]["text"] == "a"


@pytest.mark.parametrize(
    ("data", "changes", "expected"),
    [
        (b"", {}, "reviews.csv: holds no row."),
        (b"review,stars\n", {}, "reviews.csv: holds no row but its header (review, stars)."),
        (b"review,stars\na\0b,pos\n", {}, "reviews.csv:2: holds a NUL character"),
        (b"review,stars\na,pos\nb,neg,c\n", {}, "reviews.csv:3: found 3 fields, expected 2 (review, stars)"),
        (b'review,stars\na,pos\n"b,neg\n', {}, "reviews.csv:3: the record that starts here can't be read"),
        (b"review,review\na,pos\n", {}, "the header names review more than once"),
        (CSV, {"text_column": "reviw"}, "no column 'reviw' (ingest.sources[0].text_column). Did you mean 'review'?"),
        (CSV, {"text_column": "reviw"}, "Columns found: id, review, stars, who."),
        (CSV, {"keep_columns": ["zzz"]}, "no column 'zzz' (ingest.sources[0].keep_columns)."),
        (b"review,stars\na,pos\nb,odd\nc,odd\n", {}, "'odd' (2 rows); lines 3, 4. task.labels: neg, pos."),
        (
            b"id,review,stars\n7,a,pos\n8,b,neg\n7,c,pos\n",
            {"id_column": "id"},
            "1 rows repeat an id of column 'id': '7' in lines 2 and 4",
        ),
        (b"id,review,stars\n,a,pos\n", {"id_column": "id"}, "reviews.csv:2: id is empty"),
        (
            b"review,stars\na,1\nb,many\n",
            {"label_bins": [{"label": "pos", "min": 0.0}]},
            "reviews.csv:3: stars holds 'many', expected a number",
        ),
        (CSV, {"label_bins": [{"label": "good", "min": 0.0}]}, "label_bins name good; task.labels are neg, pos"),
        (CSV, {"keep_columns": ["text"]}, "keep_columns names text, which every row has already"),
        (b'{"review": "a", "stars": "pos"}\n{"review": "b"', {"path": "r.jsonl", "format": "jsonl"}, "r.jsonl:2: not"),
        (b'{"review": "b"', {"path": "r.jsonl", "format": "jsonl"}, "The line is cut off."),
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
            "r.jsonl:1: text holds a NUL character",
        ),
        (
            b'{"review": ["a"], "stars": "pos"}\n',
            {"path": "r.jsonl", "format": "jsonl"},
            "r.jsonl:1: text holds a list, expected text",
        ),
        (b"PAR1 and no footer", {"path": "r.parquet", "format": "parquet"}, "r.parquet: not a readable parquet file"),
    ],
)
def test_a_broken_file_is_refused_with_its_place(
    tmp_path: Path, data: bytes, changes: dict[str, Any], expected: str
) -> None:
    assert expected in refused(tmp_path, data, **changes)


def test_a_cut_off_parquet_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"review": ["a"] * 100, "stars": ["pos"] * 100}), tmp_path / "whole.parquet")
    data = (tmp_path / "whole.parquet").read_bytes()
    assert "r.parquet: not a readable parquet file" in refused(
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
        ({"format": "xlsx"}, "one of csv, jsonl, parquet, tsv"),
        ({"encoding": "utf8000"}, "an encoding that Python knows"),
        ({"column_names": ["a", "a"]}, "distinct names"),
        ({"label_bins": [{"label": "pos"}]}, "`min`, `max` or both"),
        (
            {"label_bins": [{"label": "pos", "min": 0.0}, {"label": "neg", "max": 0.0}]},
            "bins that do not overlap; `neg` and `pos` share 0.0",
        ),
        ({"colour": "red"}, "Extra inputs are not permitted"),
    ],
)
def test_wrong_params_are_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected.replace("`", ".")):
        IngestParams.model_validate({"sources": [source(**changes)]})


def test_two_sources_of_one_name_are_refused() -> None:
    with pytest.raises(ValidationError, match="distinct names"):
        IngestParams.model_validate({"sources": [source(), source()]})
