"""Raw bytes by DVC's own means, from real servers: what is imported, and what runs when the origin has changed.

The commands are those of docs/sources.md. Only fetch_data and ingest run here.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Project
from tests.hub import local_hub
from tunewright.files import read_json

ROWS = [("1", "a fine film, really", "positive"), ("2", "dull", "negative"), ("3", "NA", "positive")]
MORE = [*ROWS, ("4", "a second look", "negative")]
COMMIT, OTHER = "0123456789abcdef0123456789abcdef01234567", "f" * 40


def csv(rows: list[tuple[str, str, str]]) -> bytes:
    lines = [("id", "text", "label"), *rows]
    return "".join(",".join(f'"{value}"' for value in line) + "\n" for line in lines).encode()


@dataclass
class Imported:
    """A project whose raw data is `data/raw/reviews.csv`, brought there by DVC."""

    project: Project

    def use(self) -> None:
        """Point params at the file."""

        def edit(params):
            params["paths"]["raw"] = "data/raw/reviews.csv"
            params["ingest"]["sources"] = [source("reviews", path="reviews.csv", format="csv")]

        self.project.edit(edit)

    def dvc(self, *arguments: str) -> str:
        done = self.project.run("dvc", *arguments)
        return done.stdout + done.stderr

    def ingest(self) -> set[str]:
        """Bring ingest up to date; the stages that ran."""
        self.project.forget_runs()
        self.project.run("dvc", "repro", "ingest")
        return self.project.ran()

    def rows(self) -> list[tuple[str, str, str]]:
        """What ingest made: id, text, label."""
        return rows(self.project)


def source(name: str, **more: object) -> dict[str, object]:
    columns = {"id_column": "id", "text_column": "text", "label_column": "label", "keep_columns": []}
    return {"name": name, "license": "CC0-1.0", **columns, **more}


def rows(project: Project) -> list[tuple[str, str, str]]:
    import pyarrow.parquet as pq

    table = pq.read_table(project.root / "data/ingested.parquet", columns=["row_id", "text", "label"])
    return [(row["row_id"].partition(":")[2], row["text"], row["label"]) for row in table.to_pylist()]


@pytest.fixture
def imported(tmp_path: Path) -> Imported:
    project = Project.copy(tmp_path)
    shutil.rmtree(project.root / "data/raw/movie_reviews")
    return Imported(project)


def test_a_file_that_dvc_add_tracks(imported, tmp_path):
    imported.use()
    path = imported.project.root / "data/raw/reviews.csv"
    path.write_bytes(csv(ROWS))
    imported.dvc("add", "data/raw/reviews.csv")
    assert "ingest" in imported.ingest() and imported.rows() == ROWS
    untracked = imported.project.run("git", "ls-files", "--others", "--exclude-standard").stdout.split()
    assert "data/raw/reviews.csv" not in untracked and "data/raw/reviews.csv.dvc" in untracked

    path.unlink()
    path.write_bytes(csv(MORE))
    assert "data/raw/reviews.csv changed" in imported.project.tunewright("why").stdout
    assert imported.ingest() == {"ingest"} and imported.rows() == MORE

    imported.dvc("add", "data/raw/reviews.csv")
    imported.dvc("remote", "add", "--default", "disk", str(tmp_path / "remote"))
    imported.dvc("push", "data/raw/reviews.csv")
    path.unlink()
    shutil.rmtree(imported.project.root / ".dvc/cache")
    imported.dvc("pull", "data/raw/reviews.csv")
    assert path.read_bytes() == csv(MORE)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, object]]:
    """A real S3 server on loopback: its address, and a client."""
    import boto3
    from moto.server import ThreadedMotoServer

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    try:
        yield url, boto3.client("s3", endpoint_url=url, region_name="us-east-1")
    finally:
        server.stop()


def test_an_object_of_s3(imported, s3):
    url, client = s3
    client.create_bucket(Bucket="reviews")
    client.put_object(Bucket="reviews", Key="2026/reviews.csv", Body=csv(ROWS))
    imported.dvc("remote", "add", "store", "s3://reviews")
    imported.dvc("remote", "modify", "store", "endpointurl", url)
    imported.dvc("import-url", "remote://store/2026/reviews.csv", "data/raw/reviews.csv")
    imported.use()
    assert "ingest" in imported.ingest() and imported.rows() == ROWS

    before = (imported.project.root / "data/raw/reviews.csv.dvc").read_bytes()
    imported.dvc("update", "data/raw/reviews.csv.dvc")
    assert (imported.project.root / "data/raw/reviews.csv.dvc").read_bytes() == before
    assert imported.ingest() == set()

    client.put_object(Bucket="reviews", Key="2026/reviews.csv", Body=csv(MORE))
    imported.dvc("update", "data/raw/reviews.csv.dvc")
    assert imported.ingest() == {"ingest"} and imported.rows() == MORE


def test_a_query_of_sqlite(imported, tmp_path):
    with sqlite3.connect(tmp_path / "shop.db") as database:
        database.execute("create table reviews (id integer primary key, text text, label text)")
        database.executemany("insert into reviews values (?, ?, ?)", ROWS)
    imported.dvc("config", "--local", "db.shop.url", f"sqlite:///{tmp_path / 'shop.db'}")
    query = "select * from reviews order by id"
    imported.dvc("import-db", "--conn", "shop", "--sql", query, "--out", "data/raw/reviews.csv")
    imported.use()
    assert "ingest" in imported.ingest() and imported.rows() == ROWS

    with sqlite3.connect(tmp_path / "shop.db") as database:
        database.execute("insert into reviews values (?, ?, ?)", MORE[-1])
    imported.dvc("update", "data/raw/reviews.csv.dvc")
    assert imported.ingest() == {"ingest"} and imported.rows() == MORE


def test_a_file_of_another_dvc_project(imported, tmp_path):
    other = Project(tmp_path / "other")
    other.root.mkdir()
    (other.root / "reviews.csv").write_bytes(csv(ROWS))
    other.run("git", "init", "--quiet")
    other.run("dvc", "init", "--quiet")
    other.run("dvc", "add", "--quiet", "reviews.csv")
    other.commit()
    imported.dvc("import", str(other.root), "reviews.csv", "--out", "data/raw/reviews.csv")
    imported.use()
    assert "ingest" in imported.ingest() and imported.rows() == ROWS

    (other.root / "reviews.csv").unlink()
    (other.root / "reviews.csv").write_bytes(csv(MORE))
    other.run("dvc", "add", "--quiet", "reviews.csv")
    other.commit()
    imported.dvc("update", "data/raw/reviews.csv.dvc")
    assert imported.ingest() == {"ingest"} and imported.rows() == MORE


@pytest.fixture
def postgresql() -> Iterator[str]:
    """A real PostgreSQL cluster of its own, reached by a socket in its folder: that folder."""
    found = [shutil.which("initdb"), *sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))]
    programs = next((Path(path).resolve().parent for path in found if path), None)
    if programs is None:
        pytest.skip("no PostgreSQL: `sh tests/postgresql.sh` says how to install it")
    # It refuses to run as root; and what it owns must lie where that user may go.
    user = "nobody" if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="postgresql") as folder:
        if user:
            shutil.chown(folder, user)

        def run(program: str, *arguments: str) -> None:
            command = [programs / program, "-D", f"{folder}/data", *arguments]
            subprocess.run(command, user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL, timeout=120)

        run("initdb", "--username", "tester", "--auth", "trust", "--encoding", "UTF8", "--no-sync")
        socket = f"-c listen_addresses= -c unix_socket_directories={folder}"
        run("pg_ctl", "--wait", "--log", f"{folder}/log", "--options", socket, "start")
        try:
            yield folder
        finally:
            run("pg_ctl", "--wait", "--mode", "immediate", "stop")


@pytest.mark.heavy
def test_a_query_of_postgresql(imported, postgresql):
    import psycopg

    with psycopg.connect(f"host={postgresql} user=tester dbname=postgres") as database:
        database.execute("create table reviews (id serial, text text, label text)")
        database.cursor().executemany("insert into reviews (text, label) values (%s, %s)", [row[1:] for row in ROWS])
    imported.dvc("config", "--local", "db.shop.url", f"postgresql+psycopg://tester@/postgres?host={postgresql}")
    query = "select * from reviews order by id"
    imported.dvc("import-db", "--conn", "shop", "--sql", query, "--out", "data/raw/reviews.csv")
    imported.use()
    assert "ingest" in imported.ingest() and imported.rows() == ROWS

    with psycopg.connect(f"host={postgresql} user=tester dbname=postgres") as database:
        database.execute("insert into reviews (text, label) values (%s, %s)", MORE[-1][1:])
    imported.dvc("update", "data/raw/reviews.csv.dvc")
    assert imported.ingest() == {"ingest"} and imported.rows() == MORE


def test_a_source_that_is_removed_takes_its_rows_along(imported, monkeypatch):
    """Two files and a data set of the Hub; one after another is removed from params, and nothing else is touched."""
    project = imported.project
    folder = project.root / "data/raw/mixed"
    folder.mkdir()
    (folder / "one.csv").write_bytes(csv(ROWS))
    (folder / "two.csv").write_bytes(csv([(f"two-{row[0]}", f"{row[1]}!", row[2]) for row in ROWS]))
    with local_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(project.root.parent / "hub"))
        hub.datasets["org/three", COMMIT] = {"train.csv": csv([("a", "from the hub", "positive")])}
        hub.datasets["org/three", OTHER] = {"train.csv": csv([("b", "from the hub, later", "negative")])}
        pin = {"name": "three", "dataset_name": "org/three", "dataset_revision": COMMIT, "split": "train"}

        def edit(params):
            params["paths"]["raw"] = "data/raw/mixed"
            params["fetch_data"]["datasets"] = [pin | {"license": "mit"}]
            params["ingest"]["sources"] = [
                source("one", path="one.csv", format="csv"),
                source("two", path="two.csv", format="csv"),
                source("three", dataset="three"),
            ]

        project.edit(edit)
        assert imported.ingest() == {"fetch_data", "ingest"}
        assert [row[0] for row in rows(project)] == ["1", "2", "3", "two-1", "two-2", "two-3", "a"]

        project.edit(lambda params: params["fetch_data"]["datasets"][0].update(dataset_revision=OTHER))
        assert f"dataset_revision '{COMMIT}' → '{OTHER}'" in project.tunewright("why").stdout
        assert imported.ingest() == {"fetch_data", "ingest"}
        assert rows(project)[-1] == ("b", "from the hub, later", "negative")

    # The hub is gone, and what was fetched is still used.
    project.edit(lambda params: params["ingest"]["sources"].pop(1))
    assert imported.ingest() == {"ingest"}
    assert [row[0] for row in rows(project)] == ["1", "2", "3", "b"]

    project.edit(lambda params: params["ingest"]["sources"].pop(1))
    project.edit(lambda params: params.update(fetch_data={"datasets": []}))
    assert imported.ingest() == {"fetch_data", "ingest"}
    assert rows(project) == ROWS
    assert [found.name for found in (project.root / "data/hub").iterdir()] == ["index.json"]
    report = read_json(project.root / "reports/ingest.json")
    assert [found["name"] for found in report["sources"]] == ["one"] and report["rows"]["rows_in"] == 3

    project.edit(lambda params: params.update(fetch_data={"datasets": [pin]}))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    assert project.run("dvc", "repro", "fetch_data", check=False).returncode != 0
    assert read_json(project.run_file("fetch_data"))["outcome"] == "unreachable"
