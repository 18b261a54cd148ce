"""What kind of file a file is: format, encoding, delimiter, quoting, header."""

from __future__ import annotations

import bz2
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tunewright.errors import UserError
from tunewright.profile import records
from tunewright.sniff import Described, describe

TEXTS = ["good, really", "bad; truly", 'he said "fine"', "naïve | façade", "plain"]


def table(delimiter: str, header: bool = True, rows: int = 40) -> str:
    lines = [delimiter.join(("id", "label", "text"))] if header else []
    for row in range(rows):
        text = TEXTS[row % len(TEXTS)] + f" {row}"
        if delimiter in text or '"' in text:
            text = '"' + text.replace('"', '""') + '"'
        lines.append(delimiter.join((str(row), "yes" if row % 2 else "no", text)))
    return "\n".join(lines) + "\n"


def write(path: Path, content: str | bytes, encoding: str = "utf-8") -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


def read(described: Described) -> list[dict[str, Any]]:
    rejected = Counter[str]()
    found = [record.values for record in records(described, rejected)]
    assert not rejected
    return found


@pytest.mark.parametrize(
    ("delimiter", "format_", "written"), [(",", "csv", None), ("\t", "tsv", None), (";", "csv", ";"), ("|", "csv", "|")]
)
@pytest.mark.parametrize("header", [True, False])
def test_the_delimiter_and_the_header_are_found(
    tmp_path: Path, delimiter: str, format_: str, written: str | None, header: bool
) -> None:
    described = describe(write(tmp_path / "data.txt", table(delimiter, header)))
    assert (described.format, described.delimiter, described.quoting) == (format_, written, "minimal")
    assert described.column_names == (None if header else ["column_1", "column_2", "column_3"])
    rows = read(described)
    assert len(rows) == 40
    assert list(rows[2].values()) == ["2", "no", 'he said "fine" 2']


def test_the_default_recipe_s_file_is_described_as_its_params_do() -> None:
    described = describe(REPOSITORY / "data/raw/movie_reviews/movie_reviews.tsv")
    assert (described.format, described.encoding, described.column_names) == (
        "tsv", "utf-8", ["column_1", "column_2", "column_3"],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("encoding", "found"),
    [
        ("utf-8", "utf-8"),
        ("utf-8-sig", "utf-8"),
        ("utf-16", "utf-16"),
        ("utf-16-le", "utf-16-le"),
        ("utf-16-be", "utf-16-be"),
        ("cp1252", "cp1252"),
    ],
)
def test_the_encoding_is_found(tmp_path: Path, encoding: str, found: str) -> None:
    described = describe(write(tmp_path / "data.csv", table(","), encoding))
    assert described.encoding == found
    assert read(described)[3]["text"] == "naïve | façade 3"


def test_an_encoding_that_shows_late_is_found_too(tmp_path: Path) -> None:
    lines = "".join(f"{row},yes,{'word ' * 20}\n" for row in range(50_000))
    described = describe(write(tmp_path / "data.csv", lines + "50000,no,café\n", "cp1252"))
    assert described.encoding == "cp1252"


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_a_compressed_file_is_looked_into(tmp_path: Path, suffix: str, pack: Any) -> None:
    described = describe(write(tmp_path / f"data.csv{suffix}", pack(table(";").encode())))
    assert (described.format, described.delimiter) == ("csv", ";")
    assert len(read(described)) == 40


def test_quotes_that_do_not_close_are_plain_characters(tmp_path: Path) -> None:
    lines = "".join(f'{row}\tyes\t"{row} words, one quote\n' for row in range(40))
    described = describe(write(tmp_path / "data.tsv", lines))
    assert described.quoting == "none"
    assert read(described)[1] == {"column_1": "1", "column_2": "yes", "column_3": '"1 words, one quote'}


def test_json_lines_are_known_by_suffix_or_content(tmp_path: Path) -> None:
    content = "".join(json.dumps({"text": f"row {row}", "label": row % 2}) + "\n" for row in range(5))
    for name in ("data.jsonl", "data.ndjson", "data"):
        assert describe(write(tmp_path / name, content)).format == "jsonl"


def test_parquet_is_known_by_its_content(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a", "b"], "label": [1, 2]}), tmp_path / "data.bin")
    assert describe(tmp_path / "data.bin").format == "parquet"


def test_folders(tmp_path: Path) -> None:
    for label in ("neg", "pos"):
        (tmp_path / "texts" / label).mkdir(parents=True)
        write(tmp_path / "texts" / label / "1.txt", "café", "cp1252")
    described = describe(tmp_path / "texts")
    assert (described.format, described.encoding) == ("text_folder", "cp1252")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/state.json").write_text("{}")
    assert describe(tmp_path / "saved").format == "hf_dataset"
    (tmp_path / "several").mkdir()
    for name in ("train.csv", "test.csv"):
        write(tmp_path / "several" / name, table(","))
    with pytest.raises(UserError, match=r"several: a folder with data files \(test.csv, train.csv\). Name one"):
        describe(tmp_path / "several")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", b" \n", "is empty"),
        ("lines.txt", b"one text\nand another\nand one more\n", "no delimiter .* --delimiter"),
        ("array.json", b'[{"text": "a"}]', "a JSON array"),
        ("pretty.json", b'{\n "text": "a"\n}', "one JSON object over several lines"),
        ("sheet.xlsx", b"PK\x03\x04abc", "Save it as CSV"),
        ("odd.csv", b"a,b\n\x81,\x8d\n", "neither UTF-8, UTF-16 nor cp1252. Say which it is by --encoding"),
    ],
)
def test_what_is_no_data_file_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        describe(write(tmp_path / name, content))


def test_a_missing_file_and_what_is_given(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        describe(tmp_path / "nowhere.csv")
    path = write(tmp_path / "data.txt", table("~"))
    described = describe(path, delimiter="~", header=False, encoding="latin-1")
    assert (described.format, described.delimiter, described.encoding) == ("csv", "~", "latin-1")
    assert described.column_names == ["column_1", "column_2", "column_3"]
