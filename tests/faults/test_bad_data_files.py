"""Files as they come: cut off, in another encoding, with a line of 100 MB (FAULTS: data, rows 21 to 28 and 34).

Each test writes the broken file and runs the stage on it, by a params.yaml of its own, in an empty project.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import re
import subprocess
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

from stages.ingest import run
from stages.tokenize import TokenizeParams, TokenizePaths
from stages.tokenize import run as tokenize
from tests.conftest import REPOSITORY, environment
from tests.passing import let_through
from tunewright.errors import UserError
from tunewright.files import read_json
from tunewright.params import load_params
from tunewright.stage import arguments
from tunewright.task_types.text_classification import Task, TaskParams


@dataclass
class Project:
    """A folder with params.yaml and raw data, in which the stage ingest runs: the current one."""

    root: Path
    message: str = ""
    """What the stage ended with."""

    def put(self, data: bytes, name: str, labels: str, **changes: Any) -> None:
        """Write the raw file, and params that describe it; `max_…` and `control_…` are the section's, the rest is
        the source's."""
        (self.root / "data/raw").mkdir(parents=True, exist_ok=True)
        (self.root / "data/raw" / name).write_bytes(data)
        yaml = YAML(typ="safe")
        params = yaml.load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
        params["paths"]["raw"] = "data/raw"
        params["task"]["labels"] = labels.split(",")
        source = {
            "name": "reviews",
            "path": name,
            "format": name.split(".")[1],
            "license": "MIT",
            "text_column": "text",
            "label_column": "label",
        }
        section = {key: changes.pop(key) for key in list(changes) if key.startswith(("max_", "control_"))}
        params["ingest"].update(section, sources=[source | changes])
        with (self.root / "params.yaml").open("w", encoding="utf-8") as stream:
            yaml.dump(params, stream)

    def ingest(self, data: bytes, name: str = "reviews.csv", labels: str = "neg,pos", **changes: Any) -> bool:
        """Run the stage on one file. False where the file is refused: then `message` says why, and no table is left."""
        self.put(data, name, labels, **changes)
        (self.root / "data/ingested.parquet").unlink(missing_ok=True)
        try:
            report = run(**arguments(run, load_params()))
        except UserError as error:
            self.message = str(error)
            assert not (self.root / "data/ingested.parquet").exists()
            return False
        report.write(self.root / "reports/ingest.json")
        return True

    def refused(self, data: bytes, **changes: Any) -> str:
        """The message with which the stage refuses a file."""
        assert not self.ingest(data, **changes)
        return self.message

    def alone(self) -> dict[str, Any]:
        """Run the stage as a process of its own: its exit status, outcome, message and peak memory."""
        done = subprocess.run(
            ["python", "-m", "stages.ingest"],
            env={**environment(), "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return {"status": done.returncode, **read_json(self.root / ".tunewright/runs/ingest.json")}

    @property
    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = read_json(self.root / "reports/ingest.json")
        return found

    def rows(self, name: str = "ingested") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = pq.read_table(self.root / f"data/{name}.parquet").to_pylist()
        return found


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    root = tmp_path / "outer" / "project"
    root.mkdir(parents=True)
    monkeypatch.chdir(root)
    return Project(root)


CSV = "text,label\ngood – naïve,pos\nbad,neg\n"
JSONL = '{"text": "good – naïve", "label": "pos"}\n{"text": "bad", "label": "neg"}\n'


@pytest.mark.parametrize(("name", "text"), [("reviews.csv", CSV), ("reviews.jsonl", JSONL)])
def test_a_byte_order_mark_changes_no_row(project: Project, name: str, text: str) -> None:
    """Row 21."""
    assert project.ingest(text.encode(), name)
    plain = (project.root / "data/ingested.parquet").read_bytes()
    assert project.ingest(b"\xef\xbb\xbf" + text.encode(), name)
    assert (project.root / "data/ingested.parquet").read_bytes() == plain


def test_bytes_of_another_encoding_are_refused_with_their_place_or_read_by_its_name(project: Project) -> None:
    """Row 22."""
    assert project.ingest(CSV.encode())
    plain = [(row["text"], row["label"]) for row in project.rows()]
    # "text,label\n" is 11 bytes, "good " 5 more: the dash is byte 17, in line 2.
    assert "reviews.csv:2: byte 17 (0x96) is not valid utf-8" in project.refused(CSV.encode("cp1252"))
    assert "reviews.csv:1: the header can't be read (byte 1 (0xff) is not valid utf-8; it looks like UTF-16" in (
        project.refused(CSV.encode("utf-16"))
    )
    assert "it looks like UTF-16" in project.refused(CSV.encode("utf-16-le"))
    for encoding in ("cp1252", "utf-16", "utf-16-be", "utf-8-sig"):
        assert project.ingest(CSV.encode(encoding), encoding=encoding), project.message
        assert [(row["text"], row["label"]) for row in project.rows()] == plain
    # Half of a surrogate pair, after the 36 characters of CSV: in line 4, at byte 2 * 36 + 1.
    broken = CSV.encode("utf-16-le") + b"\x00\xd8a\x00\n\x00"
    assert len(CSV) == 36
    assert "reviews.csv:4: byte 73 is not valid utf-16-le" in project.refused(broken, encoding="utf-16-le")
    # One bad byte in one record, and params that let a third of the records go.
    data = b"text,label\na,pos\nna\xefve,neg\nb,neg\n"
    assert project.ingest(data, max_rejected_fraction=0.34)
    assert [row["text"] for row in project.rows()] == ["a", "b"]
    (rejected,) = project.rows("quarantine")
    assert (rejected["line"], rejected["reason"]) == (3, "bad_encoding")
    assert rejected["detail"] == "byte 20 (0xef) is not valid utf-8"
    assert rejected["record"] == "na\\xefve,neg\n"


def test_control_characters_are_rejected_or_stripped_and_counted(project: Project) -> None:
    """Row 23."""
    data = b"text,label\na\0b,pos\nc\x1bd\x07,neg\ntab\there,pos\nnext\xc2\x85line,neg\ndel\x7fete\xc2\x80,pos\n"
    message = project.refused(data)
    assert "3 of 5 records are rejected (control_characters 3)" in message
    assert "reviews.csv:2: text holds the control character U+0000 at its character 2" in message
    assert project.ingest(data, max_rejected_fraction=0.6)
    assert [row["text"] for row in project.rows()] == ["tab\there", "next\x85line"]
    assert project.report["rows"] == {"rows_in": 5, "rows_kept": 2, "dropped": {"rejected_control_characters": 3}}
    assert [row["line"] for row in project.rows("quarantine")] == [2, 3, 6]
    assert project.ingest(data, control_characters="strip")
    assert [row["text"] for row in project.rows()] == ["ab", "cd", "tab\there", "next\x85line", "delete"]
    assert project.report["sources"][0]["rows_stripped"] == 3
    assert project.rows("quarantine") == []


def test_every_line_end_gives_the_same_rows_and_ids(project: Project) -> None:
    """Row 24."""
    text = 'text,label\n"two\nlines, quoted",pos\nline\u2028separator\x0c\x0b,neg\nlast,pos'
    assert project.ingest(text.encode())
    plain = project.rows()
    assert [(row["line"], row["text"]) for row in plain] == [
        (2, "two\nlines, quoted"),
        (4, "line\u2028separator\x0c\x0b"),
        (5, "last"),
    ]
    assert project.ingest(text.replace("\n", "\r\n").encode())
    assert project.rows() == plain
    assert project.ingest(text.replace("\n", "\r").encode())
    assert [row["line"] for row in project.rows()] == [2, 4, 5]
    assert project.rows()[1:] == plain[1:]
    # A CRLF on the edge of the blocks of 1 MiB that the file is read in.
    head = b"text,label\r\n"
    for shift in (-1, 0, 1):
        long = b"a" * ((1 << 20) - len(head) - len(b",pos") + shift)
        data = head + long + b",pos\r\nb,neg\r\n"
        assert project.ingest(data, max_text_characters=2_000_000)
        assert [(row["line"], len(row["text"])) for row in project.rows()] == [(2, len(long)), (3, 1)]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_line_of_100_mb_is_rejected_without_being_held(project: Project, kind: str) -> None:
    """Row 25, first half."""
    good, before, after, head = b"good,pos\n" * 5, b'"', b'",pos\n', b"text,label\n"
    if kind == "jsonl":
        good, before, after, head = (
            b'{"text": "good", "label": "pos"}\n' * 5,
            b'{"text": "',
            b'", "label": "pos"}\n',
            b"",
        )
    name, line = f"reviews.{kind}", 6 + bool(head)
    project.put(head + good + good, name, "neg,pos")
    usual = project.alone()
    assert (usual["status"], usual["outcome"]) == (0, "ran")

    long = before + b"word " * 20_000_000 + after
    project.put(head + good + long + good, name, "neg,pos")
    refused = project.alone()
    assert (refused["status"], refused["outcome"]) == (2, "bad_input")
    # 4 MiB, and 16 bytes for each of 100,000 characters.
    assert f"{name}:{line}: found a line of {len(long)} bytes, expected at most 5794304" in refused["message"]

    project.put(head + good + long + good, name, "neg,pos", max_rejected_fraction=0.1)
    kept = project.alone()
    assert kept["status"] == 0
    assert kept["peak_memory_mb"] < usual["peak_memory_mb"] + 50
    assert [row["text"] for row in project.rows()] == ["good"] * 10
    (rejected,) = project.rows("quarantine")
    assert (rejected["line"], rejected["reason"], len(rejected["record"])) == (line, "record_too_long", 65_536)


def test_a_compressed_file_that_swells_is_read_in_bounded_memory(project: Project) -> None:
    """Row 37: 100 KB that become a line of 100 MB."""
    head, good = b"text,label\n", b"good,pos\n" * 5
    project.put(gzip.compress(head + good + good), "reviews.csv.gz", "neg,pos")
    usual = project.alone()
    assert usual["status"] == 0
    swollen = gzip.compress(head + good + b'"' + b"word " * 20_000_000 + b'",pos\n' + good, 1)
    assert len(swollen) < 1_000_000
    project.put(swollen, "reviews.csv.gz", "neg,pos", max_rejected_fraction=0.1)
    kept = project.alone()
    assert kept["status"] == 0 and kept["peak_memory_mb"] < usual["peak_memory_mb"] + 50
    (rejected,) = project.rows("quarantine")
    assert (rejected["line"], rejected["reason"]) == (7, "record_too_long")


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_an_archive_is_no_file_of_rows_and_nothing_of_it_is_unpacked(
    project: Project, tmp_path: Path, kind: str
) -> None:
    """Row 37: neither by its own name nor under that of a file of rows."""
    stream, rows = io.BytesIO(), b"text,label\n" + b"good,pos\n" * 50
    if kind == "zip":
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("reviews.csv", rows)
            archive.writestr("../../evil.csv", rows)
    else:
        with tarfile.open(fileobj=stream, mode="w:gz" if kind == "tar.gz" else "w") as tar:
            for name in ("reviews.csv", "../../evil.csv"):
                told = tarfile.TarInfo(name)
                told.size = len(rows)
                tar.addfile(told, io.BytesIO(rows))
            link = tarfile.TarInfo("link.csv")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
    for name in (f"reviews.{kind}", "reviews.csv"):
        assert re.search(rf"reviews\.(csv|{kind})", project.refused(stream.getvalue(), name=name, format="csv"))
    assert not list(tmp_path.rglob("*evil*")) and not list(tmp_path.rglob("link.csv"))


def test_a_text_of_a_million_tokens_is_capped_or_cut_and_reported(project: Project, tiny_model: Path) -> None:
    """Row 25, second half."""
    words = "film " * 1_000_000
    data = f"text,label\n{words},pos\nshort,neg\n".encode()
    assert "text has 5000000 characters, expected at most 100000" in project.refused(data)
    assert project.ingest(data, max_rejected_fraction=0.5)
    assert project.report["rows"]["dropped"] == {"rejected_text_too_long": 1}
    assert project.ingest(data, max_text_characters=5_000_000)
    rows = pq.read_table(project.root / "data/ingested.parquet")
    assert rows["text"][0].as_py() == words
    prepared, passed = project.root / "data/prepared", project.root / "reports/data.passed"
    prepared.mkdir()
    for split, part in {"train": rows, "validation": rows[1:], "test": rows[1:]}.items():
        pq.write_table(part, prepared / f"{split}.parquet")
    paths = TokenizePaths(
        prepared=prepared,
        training_weights=let_through(prepared, passed),
        data_passed=passed,
        base_model=tiny_model,
        tokens=project.root / "data/tokens",
        tokenize_plots=project.root / "plots",
    )
    task = Task(TaskParams(type="text_classification", labels=["neg", "pos"]))
    found = tokenize(paths, TokenizeParams(max_length=64), task).splits["train"]
    assert (found.max, found.truncated, found.truncation_rate) == (1_000_002, 1, 0.5)
    with pa.ipc.open_stream(project.root / "data/tokens/train.arrow") as stream:
        assert stream.read_all()["length"].to_pylist()[0] == 64


def test_a_cut_off_jsonl_fails_with_the_place_or_goes_to_the_quarantine(project: Project) -> None:
    """Row 26: JSON Lines."""
    good = b'{"text": "good", "label": "pos"}\n' * 9
    tail = b'{"text": "half of a rec'
    message = project.refused(good + tail, name="r.jsonl")
    assert "1 of 10 records are rejected (cut_off 1), more than ingest.max_rejected_fraction: 0.0 allows" in message
    assert "r.jsonl:10: not valid JSON (Unterminated string starting at, column 10); the line is cut off" in message
    assert "half of a" not in message  # a text's value reaches no message
    # The quarantine is there to be looked at, though the stage has failed.
    assert [row["record"] for row in project.rows("quarantine")] == [tail.decode()]
    assert project.ingest(good + tail, "r.jsonl", max_rejected_fraction=0.1)
    assert len(project.rows()) == 9
    assert project.rows("quarantine") == [
        {
            "source": "reviews",
            "file": "data/raw/r.jsonl",
            "line": 10,
            "reason": "cut_off",
            "detail": "not valid JSON (Unterminated string starting at, column 10); the line is cut off",
            "record": tail.decode(),
        }
    ]
    # The rate is of the source's records: two of eleven are more than a tenth.
    assert "2 of 11 records are rejected (invalid_json 1, cut_off 1)" in project.refused(
        b"{}}\n" + good + tail, name="r.jsonl", max_rejected_fraction=0.1
    )


def test_a_ragged_csv_fails_with_the_place_or_goes_to_the_quarantine(project: Project) -> None:
    """Row 26: CSV."""
    data = b'text,label\na,pos\nb,neg,more\nc\nd,pos\n"e,neg\nf,pos\nlast one,ne'
    message = project.refused(data)
    assert "reviews.csv:3: found 3 fields, expected 2 (text, label); reviews.csv:4: found 1 fields" in message.replace(
        "data/raw/", ""
    )
    # The lost quote takes the three lines up to the end with it, and each of them counts.
    assert "5 of 7 records are rejected (broken_quotes 3, ragged_line 2)" in message
    assert project.ingest(data, max_rejected_fraction=0.75)
    assert [row["text"] for row in project.rows()] == ["a", "d"]
    assert [(row["line"], row["reason"]) for row in project.rows("quarantine")] == [
        (3, "ragged_line"),
        (4, "ragged_line"),
        (6, "broken_quotes"),
        (7, "broken_quotes"),
        (8, "broken_quotes"),
    ]
    assert project.report["rows"] == {
        "rows_in": 7,
        "rows_kept": 2,
        "dropped": {"rejected_ragged_line": 2, "rejected_broken_quotes": 3},
    }
    assert "reviews.csv:3: found 1 fields" in project.refused(b"text,label\na,pos\nlast on")
    assert "(cut_off 1)" in project.message


def test_a_broken_parquet_and_a_cut_off_archive_fail_with_the_place(project: Project) -> None:
    """Row 26: Parquet, and compressed files."""
    pq.write_table(pa.table({"text": ["a"] * 5000, "label": ["pos"] * 5000}), project.root / "whole.parquet")
    whole = (project.root / "whole.parquet").read_bytes()
    assert "r.parquet: can't be read as parquet: Parquet magic bytes not found" in project.refused(
        whole[:-4], name="r.parquet"
    )
    # The footer is whole, and a page before it is not.
    broken = whole[:4] + b"\xff" * 40 + whole[44:]
    assert "r.parquet: not a readable parquet file" in project.refused(broken, name="r.parquet")
    text = "text,label\n" + "".join(f"review number {number},pos\n" for number in range(5000))
    zstd = pa.compress(text.encode(), codec="zstd", asbytes=True)
    archives = {
        "gz": gzip.compress(text.encode(), mtime=0),
        "bz2": bz2.compress(text.encode()),
        "xz": lzma.compress(text.encode()),
        "zst": zstd,
    }
    for suffix, data in archives.items():
        name = f"reviews.csv.{suffix}"
        assert project.ingest(data, name), project.message
        assert len(project.rows()) == 5000
        message = project.refused(data[: len(data) // 2], name=name)
        assert f"{name}:" in message and "the compressed file is cut off or broken here" in message
        assert int(message.partition(f"{name}:")[2].partition(":")[0]) >= 1


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("r.csv", b"", "r.csv: holds no row. Expected at least one."),
        ("r.csv", b"text,label\n", "r.csv: holds no row but its header (text, label). Expected at least one."),
        ("r.csv", b"text,lable\na,pos\n", "no column 'label' (ingest.sources[0].label_column). Did you mean 'lable'?"),
        ("r.jsonl", b"\n\n", "r.jsonl: holds no row. Expected at least one."),
        ("r.jsonl", b'{"text": "a"}\n{"text": "b"}\n', "no column 'label' (ingest.sources[0].label_column)."),
    ],
)
def test_an_empty_file_and_a_missing_column_fail(project: Project, name: str, data: bytes, expected: str) -> None:
    """Row 27."""
    assert expected in project.refused(data, name=name)


def test_a_parquet_without_rows_fails(project: Project) -> None:
    """Row 27: Parquet."""
    empty = pa.schema([("text", pa.string()), ("label", pa.string())]).empty_table()
    pq.write_table(empty, project.root / "r.parquet")
    message = project.refused((project.root / "r.parquet").read_bytes(), name="r.parquet")
    assert "r.parquet: holds no row but its header (text, label)." in message


def test_an_id_that_stands_twice_fails_and_its_pairs_are_named(project: Project) -> None:
    """Row 28."""
    records = [("7", "one text"), ("8", "b"), ("7", "another text"), ("9", "c"), ("8", "b")]
    data = "".join(json.dumps({"id": key, "text": text, "label": "pos"}) + "\n" for key, text in records)
    # No fraction lets a repeated id go: which of the two rows is right can't be known.
    message = project.refused(data.encode(), name="r.jsonl", id_column="id", max_rejected_fraction=1.0)
    assert "2 rows repeat an id of column 'id': lines 1 and 3 (two texts), 2 and 5." in message
    assert "another text" not in message
    assert project.ingest(data.encode(), "r.jsonl")
    assert len({row["row_id"] for row in project.rows()}) == 5


def test_labels_stay_the_strings_that_they_are(project: Project) -> None:
    """Row 34."""
    labels = ["01", "1", "1.0", "NA", "None", "nan", "null", "true", "1e5"]
    text = "text,label\n" + "".join(f"t{place},{label}\n" for place, label in enumerate(labels))
    assert project.ingest(text.encode(), labels=",".join(labels))
    assert [row["label"] for row in project.rows()] == labels
    numbers = '{"text": "a", "label": 1}\n{"text": "b", "label": 1.0}\n{"text": "c", "label": "01"}\n'
    assert project.ingest(numbers.encode(), "r.jsonl", labels="01,1,1.0")
    assert [row["label"] for row in project.rows()] == ["1", "1.0", "01"]
    pq.write_table(pa.table({"text": ["a", "b"], "label": ["NA", "01"]}), project.root / "r.parquet")
    assert project.ingest((project.root / "r.parquet").read_bytes(), "r.parquet", labels="NA,01")
    assert [row["label"] for row in project.rows()] == ["NA", "01"]
