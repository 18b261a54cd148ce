"""No personal value and no secret leaves the data.

Canaries of every kind are planted in the raw file, run through the real flow, and looked for in everything that it
produced: reports, pages, plots, logs, Prefect's database, DVC's files, standard output.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROWS, Project, reviews
from tunewright.privacy import KINDS, pseudonym

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
IDENTITY = "canary.ida@example.net"  # stands as the id of a row
KEPT = [*CANARIES.values(), *AUTHORS]
VALUES = [*KEPT, IDENTITY]
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
    lines[1] = "\t".join([IDENTITY, *lines[1].split("\t")[1:]])
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
        set_policy(params, policy)
        params["audit_data"]["sensitive_features"] = ["author"]
        params["audit_data"]["reference_groups"] = {}
        params["evaluate"]["slice_columns"] = ["author"]
        params["report"]["max_examples"] = 1000
        params["export"]["onnx"] = policy != "redact"  # the gate's own run: no text is in it, and it takes a while

    project.edit(change)


def set_policy(params: Any, policy: str) -> None:
    """The same policy for every kind."""
    params["prepare"]["privacy"].update(dict.fromkeys(KINDS, policy))
    params["prepare"]["privacy"]["patterns"] = {"badge": {"regex": r"BDG-\d{6}", "policy": policy}}


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


def test_redacted_no_value_is_left_nor_was_one_told_when_a_row_was_bad(project: Project) -> None:
    plant(project, "redact")
    path = project.root / "data/raw/movie_reviews/movie_reviews.tsv"
    good = path.read_bytes()
    fourth = good.split(b"\r\n")[3]
    identity, _, text, author = fourth.split(b"\t")
    path.write_bytes(good.replace(fourth, b"\t".join([identity, CANARIES["email"].encode(), text, author])))
    bad = project.tunewright("run", check=False)
    assert bad.returncode == 2
    assert "movie_reviews.tsv:4" in bad.stdout and "[EMAIL_1]" in bad.stdout
    assert "[EMAIL_1]" in project.run_file("ingest").read_text()
    assert leaks(project, bad) == []

    path.write_bytes(good)
    assert leaks(project, project.tunewright("run")) == []
    check_what_is_shown(project, "redact")
    texts = prepared(project)
    assert [value for value in VALUES if value in texts] == []
    assert [kind for kind in CANARIES if f"write to [{kind.upper()}_1] for more [EMAIL_" not in texts] == []
    tokens = decoded(project)
    assert "writeto" in tokens and [value for value in VALUES if "".join(value.lower().split()) in tokens] == []


@pytest.mark.heavy  # the same search over a run of a quarter of the stages; what must not be there has unit tests too
def test_what_must_not_be_there_closes_the_gate_and_what_warns_is_told_by_row(project: Project) -> None:
    plant(project, "fail")
    closed = project.tunewright("run", check=False)
    assert closed.returncode == 3, closed.stdout + closed.stderr
    for kind in CANARIES:
        own = "patterns." if kind == "badge" else ""
        found = rf"prepare\.privacy\.{own}{kind}: found \d+ found in \d+ rows: movie_reviews:\d+"
        assert re.search(found, closed.stdout)
    assert leaks(project, closed) == []
    assert not (project.root / "data/tokens").exists()

    project.edit(lambda params: set_policy(params, "warn"))
    assert leaks(project, project.tunewright("run")) == []
    check_what_is_shown(project, "warn")
    texts = prepared(project)
    assert [value for value in VALUES if value in texts] == KEPT


def check_what_is_shown(project: Project, policy: str) -> None:
    """Kinds, counts, placeholders and row ids are told, and what the flow itself keeps was searched."""
    report = json.loads((project.root / "reports/prepare.json").read_text())
    assert {kind: found["policy"] for kind, found in report["privacy"]["kinds"].items()} == dict.fromkeys(
        [*KINDS, "badge"], policy
    )
    assert all(found["values"] >= 3 and found["row_ids"] for found in report["privacy"]["kinds"].values())
    assert "write to [" in (project.root / "reports/report.html").read_text()  # among the errors that it quotes
    for name in ("audit_data", "evaluate"):
        assert '"[EMAIL_1]"' in (project.root / f"reports/{name}.json").read_text()
    assert f"movie_reviews:{pseudonym(IDENTITY)} " in prepared(project)
    assert list((project.root / ".tunewright").rglob("*.db")) and (project.root / ".tunewright/logs").is_dir()


def prepared(project: Project) -> str:
    """Every prepared row, its text and its author."""
    import pyarrow.parquet as pq

    rows = [
        row for split in SPLITS for row in pq.read_table(project.root / f"data/prepared/{split}.parquet").to_pylist()
    ]
    return "\n".join(f"{row['row_id']} {row['text']} {row['author']}" for row in rows)


def decoded(project: Project) -> str:
    """Every token of every row as text, without spaces."""
    import pyarrow as pa
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(project.root / "models/base/tokenizer.json"))
    found = []
    for split in SPLITS:
        with pa.ipc.open_stream(project.root / f"data/tokens/{split}.arrow") as stream:
            found += [tokenizer.decode(ids) for ids in stream.read_all().column("input_ids").to_pylist()]
    return "".join("".join(found).split())


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
