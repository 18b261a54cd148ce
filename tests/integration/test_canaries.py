"""No personal value and no secret leaves the data.

Canaries of every kind are planted in the raw file, run through the real flow, and looked for in everything that it
produced: reports, pages, plots, logs, Prefect's database, DVC's files, standard output.
"""

from __future__ import annotations

import re
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROWS, Project, reviews

# Official test numbers, and ranges kept for documentation. The secrets are made here, so that no scanner takes this
# file for a leak.
CANARIES = {
    "email": "canary.jane@example.com",
    "phone": "+1 202-555-0147",
    "credit_card": "4012 8888 8888 1881",
    "iban": "GB82 WEST 1234 5698 7654 32",
    "ip_address": "198.51.100.223",
    "us_ssn": "536-90-4399",
    "secret": "ghp_" + "c4Na" * 9,
    "badge": "BDG-771204",
}
AUTHORS = ["canary.ann@example.org", "canary.bob@example.org", "canary.cho@example.org"]
VALUES = [*CANARIES.values(), *AUTHORS]
# Where values of rows may be: what was given (this file too), and the rows themselves.
GIVEN = ("data/raw/", "tests/", ".git/")
DATA = (*GIVEN, "data/ingested.parquet", "data/quarantine.parquet", "data/prepared/")
SPLITS = ("train", "validation", "test")


def plant(project: Project, policy: str) -> None:
    """Rows with a canary each, six of every kind, and an author's address in every row."""
    lines = reviews(ROWS).decode().split("\r\n")[:-1]
    values = list(CANARIES.values())
    for at in range(6 * len(values)):
        lines[7 * at] += f" write to {values[at % len(values)]} for more"
    lines = [f"{line}\t{AUTHORS[at % 3]}" for at, line in enumerate(lines)]
    path = project.root / "data/raw/movie_reviews/movie_reviews.tsv"
    path.write_bytes("\r\n".join([*lines, ""]).encode())

    def change(params: Any) -> None:
        source = params["ingest"]["sources"][0]
        source["column_names"].append("author")
        source["keep_columns"] = ["author"]
        # Great Expectations would quote what this finds.
        kwargs = {"column": "text", "regex": "write to", "mostly": 0.1}
        params["validate"]["expectations"] = [{"type": "expect_column_values_to_not_match_regex", "kwargs": kwargs}]
        params["prepare"]["privacy"] |= {kind: policy for kind in CANARIES if kind != "badge"}
        params["prepare"]["privacy"]["patterns"] = {"badge": {"regex": r"BDG-\d{6}", "policy": policy}}
        params["audit_data"]["sensitive_features"] = ["author"]
        params["audit_data"]["reference_groups"] = {}
        params["evaluate"]["slice_columns"] = ["author"]
        params["report"]["max_examples"] = 1000

    project.edit(change)


def texts(path: Path) -> Iterator[str]:
    """What a file says: its bytes as text, and what stands in a table of a database or of Parquet or Arrow."""
    raw = path.read_bytes()
    yield raw.decode("utf-8", errors="replace")
    yield raw.decode("utf-16-le", errors="replace")
    if raw.startswith(b"SQLite format 3\0"):
        with sqlite3.connect(path) as database:
            yield "\n".join(database.iterdump())
    elif raw.startswith(b"PAR1"):
        import pyarrow.parquet as pq

        yield str(pq.read_table(path).to_pydict())


def leaks(project: Project, done: subprocess.CompletedProcess[str], data: tuple[str, ...] = DATA) -> list[str]:
    """Every place outside the data where a canary stands."""
    import hashlib

    files = {path: path.relative_to(project.root).as_posix() for path in project.root.rglob("*") if path.is_file()}
    # DVC's cache holds the data too, under the hash of their bytes.
    cached = {hashlib.md5(path.read_bytes()).hexdigest() for path, name in files.items() if name.startswith(data)}  # noqa: S324
    found = [f"standard output: {value}" for value in VALUES if value in done.stdout + done.stderr]
    seen = 0
    for path, name in files.items():
        is_data = name.startswith(data) or (name.startswith(".dvc/cache/") and "".join(path.parts[-2:]) in cached)
        if not is_data:
            seen += 1
            found += [f"{name}: {value}" for text in texts(path) for value in VALUES if value in text]
    assert seen > 100
    return found


def test_the_search_finds_what_there_is(project: Project) -> None:
    plant(project, "warn")
    done = subprocess.CompletedProcess([], 0, "", "")
    assert leaks(project, done) == []
    assert len(leaks(project, done, data=GIVEN[1:])) == len(VALUES)
    with sqlite3.connect(project.root / "found.db") as database:
        database.execute("create table log (line)")
        database.execute("insert into log values (?)", ("x" * 5000 + VALUES[0] + "x" * 5000,))
    assert set(leaks(project, done)) == {f"found.db: {VALUES[0]}"}


@pytest.mark.parametrize("policy", ["warn", "redact"])
def test_a_whole_run_carries_no_value(project: Project, policy: str) -> None:
    import pyarrow.parquet as pq

    plant(project, policy)
    done = project.tunewright("run")
    assert leaks(project, done) == []

    prepare = (project.root / "reports/prepare.json").read_text()
    assert f'"policy": "{policy}"' in prepare
    page = (project.root / "reports/report.html").read_text()
    placeholders = {f"[{kind.upper()}_1]" for kind in CANARIES}
    assert "write to [" in page  # some of the errors that are quoted hold a canary
    assert '"[EMAIL_1]"' in (project.root / "reports/audit_data.json").read_text()
    # The flow's own records were among what was searched.
    assert list((project.root / ".tunewright").rglob("*.db")) and (project.root / ".tunewright/logs").is_dir()

    rows = [row for split in SPLITS for row in _rows(project, split)]
    texts = "\n".join(f"{row['text']} {row['author']}" for row in rows)
    kept = [value for value in VALUES if value in texts]
    if policy == "redact":
        assert kept == [] and all(placeholder in texts for placeholder in placeholders)
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(project.root / "models/base/tokenizer.json"))
        ids = [ids for split in SPLITS for ids in _ids(project, split)]
        decoded = "".join("".join(tokenizer.decode(found).split()) for found in ids)
        assert "writeto[email_1]for" in decoded
        assert [value for value in VALUES if "".join(value.lower().split()) in decoded] == []
    else:
        assert kept == VALUES
    assert pq.read_table(project.root / "data/ingested.parquet").num_rows > len(rows)


def test_a_kind_that_must_not_be_there_closes_the_gate_and_is_told_by_row(project: Project) -> None:
    plant(project, "fail")
    done = project.tunewright("run", check=False)
    assert done.returncode == 3, done.stdout + done.stderr
    for kind in CANARIES:
        own = "patterns." if kind == "badge" else ""
        assert re.search(rf"prepare\.privacy\.{own}{kind}: found \d+ found in \d+ rows: movie_reviews:\d+", done.stdout)
    assert leaks(project, done) == []
    assert not (project.root / "data/tokens").exists()


def test_a_message_that_quotes_a_row_is_masked(project: Project) -> None:
    plant(project, "redact")
    path = project.root / "data/raw/movie_reviews/movie_reviews.tsv"
    lines = path.read_bytes().split(b"\r\n")
    lines[3] = b"\t".join([lines[3].split(b"\t")[0], VALUES[0].encode(), *lines[3].split(b"\t")[2:]])
    path.write_bytes(b"\r\n".join(lines))
    done = project.tunewright("run", check=False)
    assert done.returncode == 2
    assert "movie_reviews.tsv:4" in done.stdout and "[EMAIL_1]" in done.stdout
    assert leaks(project, done) == []
    assert "[EMAIL_1]" in project.run_file("ingest").read_text()


def test_a_traceback_that_quotes_a_row_is_masked(project: Project) -> None:
    plant(project, "redact")
    stage = project.root / "stages/prepare.py"
    code = stage.read_text()
    defect = f"    raise RuntimeError('can not take {CANARIES['email']} of {CANARIES['badge']}')\n"
    stage.write_text(re.sub(r"(?m)^def run\((?s:.*?):\n", lambda match: match[0] + defect, code, count=1))
    project.stage("ingest")
    done = project.stage("prepare", check=False)
    assert done.returncode == 1 and "Traceback" in done.stderr
    assert "RuntimeError: can not take [EMAIL_1] of [BADGE_1]" in done.stderr
    assert "[EMAIL_1] of [BADGE_1]" in project.run_file("prepare").read_text()


def _rows(project: Project, split: str) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    found: list[dict[str, Any]] = pq.read_table(project.root / f"data/prepared/{split}.parquet").to_pylist()
    return found


def _ids(project: Project, split: str) -> list[list[int]]:
    import pyarrow as pa

    with pa.ipc.open_stream(project.root / f"data/tokens/{split}.arrow") as stream:
        found: list[list[int]] = stream.read_all().column("input_ids").to_pylist()
    return found
