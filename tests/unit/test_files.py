"""Files are whole or not there, and the same content is the same bytes."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pytest

from tunewright.errors import UserError
from tunewright.files import (
    atomic_file,
    atomic_folder,
    canonical_json,
    read_json,
    read_parquet,
    sha256_file,
    sha256_tree,
    write_json,
    write_parquet,
    write_text,
)


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    target.write_text("old")

    def write() -> None:
        with atomic_file(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        write()

    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_an_error_while_writing_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "tokens"
    target.mkdir()
    (target / "train.arrow").write_text("old")

    def write() -> None:
        with atomic_folder(target) as temporary:
            (temporary / "train.arrow").write_text("half")
            raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        write()

    assert (target / "train.arrow").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "tokens"
    for names in (["train", "test"], ["train"]):
        with atomic_folder(target) as temporary:
            for name in names:
                (temporary / name).write_text(name)
            (temporary / "inner").mkdir()

    assert sorted(found.name for found in target.iterdir()) == ["inner", "train"]
    assert list(target.parent.iterdir()) == [target]
    assert target.stat().st_mode & 0o777 == 0o755


def test_a_written_file_can_be_read_by_others(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "page.html", "ä\n")
    written = tmp_path / "new" / "page.html"
    assert written.read_bytes() == b"\xc3\xa4\n"
    assert written.stat().st_mode & 0o777 == 0o644


def test_a_kill_in_mid_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "weights"
    target.write_text("old")
    program = """
import sys, time
from pathlib import Path
from tunewright.files import atomic_file
with atomic_file(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    Path(sys.argv[2]).touch()
    time.sleep(60)
"""
    started = tmp_path / "started"
    process = subprocess.Popen([sys.executable, "-c", program, str(target), str(started)])
    while not started.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()

    assert target.read_text() == "old"


def test_json_has_one_form() -> None:
    assert canonical_json({"b": [1, 2.5], "a": "ä"}) == '{\n  "a": "ä",\n  "b": [\n    1,\n    2.5\n  ]\n}\n'
    assert canonical_json({"a": 1, "b": 2}) == canonical_json({"b": 2, "a": 1})


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_json_is_finite(tmp_path: Path, number: float) -> None:
    target = tmp_path / "report.json"
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(target, {"loss": number})
    assert list(tmp_path.iterdir()) == []


def test_reading_what_is_not_there_names_the_file_and_the_remedy(tmp_path: Path) -> None:
    for read in (read_json, read_parquet, sha256_tree):
        with pytest.raises(UserError, match=r"missing: not found\. Run the stage that writes it: `dvc repro`\."):
            read(tmp_path / "missing")


def test_reading_what_is_cut_off_names_the_file_and_the_remedy(tmp_path: Path) -> None:
    torn = tmp_path / "torn"
    torn.write_text('{"a": ')
    with pytest.raises(UserError, match=r"torn: not valid JSON .*Remove it and run `dvc repro`"):
        read_json(torn)
    with pytest.raises(UserError, match=r"torn: not a readable Parquet file .*Remove it and run `dvc repro`"):
        read_parquet(torn)


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    # The test vector of FIPS 180-4.
    assert sha256_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_tree(path) == sha256_file(path)


def test_the_hash_of_a_folder_is_over_sorted_names_and_hashes(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "a").mkdir(parents=True)
    (folder / "z").write_bytes(b"1")
    (folder / "a" / "b").write_bytes(b"2")
    one, two = (hashlib.sha256(content).hexdigest() for content in (b"1", b"2"))
    assert sha256_tree(folder) == hashlib.sha256(f"a/b\0{two}\nz\0{one}\n".encode()).hexdigest()


@pytest.mark.parametrize("change", ["content", "name", "more"])
def test_the_hash_of_a_folder_sees(tmp_path: Path, change: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_text("1")
    before = sha256_tree(folder)
    os.utime(folder / "weights", (0, 0))
    assert sha256_tree(folder) == before

    if change == "content":
        (folder / "weights").write_text("2")
    elif change == "name":
        (folder / "weights").rename(folder / "weights2")
    else:
        (folder / "config").write_text("")
    assert sha256_tree(folder) != before


def test_the_same_table_is_the_same_parquet(tmp_path: Path) -> None:
    table = pa.table({"text": ["ä", None], "length": pa.array([1, 2], type=pa.int32())})
    write_parquet(table, tmp_path / "one.parquet")
    write_parquet(table, tmp_path / "two.parquet")
    assert sha256_file(tmp_path / "one.parquet") == sha256_file(tmp_path / "two.parquet")
    assert read_parquet(tmp_path / "one.parquet").equals(table)
    assert read_parquet(tmp_path / "one.parquet", columns=["length"]).column_names == ["length"]


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    (tmp_path / ".tokens~k1ll3d").mkdir()
    (tmp_path / ".tokens~k1ll3d" / "train.arrow").write_text("half")
    (tmp_path / ".tokens2~k1ll3d").mkdir()  # of another output
    with atomic_folder(tmp_path / "tokens") as temporary:
        (temporary / "train.arrow").write_text("whole")
    assert sorted(found.name for found in tmp_path.iterdir()) == [".tokens2~k1ll3d", "tokens"]

    (tmp_path / ".page.html~k1ll3d").write_text("half")
    write_text(tmp_path / "page.html", "whole")
    assert sorted(found.name for found in tmp_path.iterdir()) == [".tokens2~k1ll3d", "page.html", "tokens"]
