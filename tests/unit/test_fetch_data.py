"""fetch_data against a hub on loopback: what is written, and what is refused. The clients are the real ones."""

import gzip
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.fetch_data import DatasetParams, FetchDataParams, FetchDataPaths, run
from tests.conftest import REPOSITORY
from tests.hub import local_hub
from tunewright.files import read_json, sha256_file

COMMIT, OTHER = "0123456789abcdef0123456789abcdef01234567", "f" * 40
CARD = b"---\nlicense: mit\n---\n"
CSV = b'text,label,other\n"one, two",NA,\nthree,01,1e5\n'
CONFIGS = b"""---
license: [mit, cc0-1.0]
configs:
- config_name: small
  data_files: [{split: train, path: small/*.csv}]
- config_name: large
  data_files: [{split: train, path: large.csv.gz}, {split: test, path: test.csv}]
---
"""
ELSEWHERE = b"---\nlicense: mit\nconfigs:\n- {config_name: a, data_files: [{split: train, path: 'hf://datasets/org/elsewhere@%s/train.csv'}]}\n---\n"


# From the folder that `datasets` unpacks into, inside the stage's own temporary one, up to beside the working folder.
CLIMBING = ["up_" * steps + "evil" for steps in range(1, 7)]


def zipped(**files: bytes) -> bytes:
    """A zip archive; `up` in place of ../"""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name.replace("up_", "../") + ".csv", data)
    return stream.getvalue()


def parquet() -> bytes:
    """Two columns; the label is a number, which the metadata that `datasets` writes gives a name."""
    names = {"_type": "ClassLabel", "names": ["negative", "positive"]}
    features = {"text": {"dtype": "string", "_type": "Value"}, "label": names}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"text": ["bad", "good", "odd"], "label": pa.array([0, 1, -1], pa.int64())}, metadata=metadata)
    stream = io.BytesIO()
    pq.write_table(table, stream)
    return stream.getvalue()


REPOSITORIES = {
    "plain": {"README.md": CARD, "data/train-00000-of-00001.parquet": parquet()},
    "configs": {
        "README.md": CONFIGS,
        "small/1.csv": b"text,label\na,1\n",
        "small/2.csv": b"text,label\nb,2\n",
        "large.csv.gz": gzip.compress(CSV, mtime=0),
        "test.csv": b"text,label,other\nfour,x,y\n",
    },
    "no_card": {"train.csv": CSV},
    "scripted": {"README.md": CARD, "scripted.py": b"raise SystemExit(99)", "train.csv": CSV},
    "pictures": {"README.md": CARD, "train/cat/1.png": b"\x89PNG"},
    "broken": {"README.md": CARD, "train.parquet": parquet()[:-20]},
    "ragged": {"README.md": CARD, "train.csv": b"text,label\na,b\nc,d,e\n"},
    "empty": {"README.md": CARD},
    "no_rows": {"README.md": CARD, "train.jsonl": b""},
    "zipped": {"README.md": CARD, "train.zip": zipped(train=b"text,label\n" + b"x,y\n" * 1_000_000)},
    "climbing": {"README.md": CARD, "train.zip": zipped(train=CSV, **dict.fromkeys(CLIMBING, CSV))},
    "cut_zip": {"README.md": CARD, "train.zip": zipped(train=CSV)[:-10]},
}
WANTED = {name: {"dataset_name": f"org/{name}"} for name in (*REPOSITORIES, "elsewhere", "absent")} | {
    "small": {"dataset_name": "org/configs", "dataset_config": "small"},
    "large": {"dataset_name": "org/configs", "dataset_config": "large", "split": "test"},
    "wrong_config": {"dataset_name": "org/configs", "dataset_config": "middle"},
    "wrong_split": {"dataset_name": "org/plain", "split": "validation"},
    "wrong_commit": {"dataset_name": "org/plain", "dataset_revision": OTHER},
    "strings": {"dataset_name": "org/configs", "dataset_config": "large"},
    "licensed": {"dataset_name": "org/no_card", "license": "cc0-1.0"},
    "again": {"dataset_name": "org/plain"},
}
# Each case is fetched by the stage's own `run`, one after another in one process: the libraries take seconds to load.
PROGRAM = """
import json, sys
from pathlib import Path
from stages.fetch_data import FetchDataParams, FetchDataPaths, run
from tunewright.errors import UserError

for name, wanted in json.loads(sys.argv[1]).items():
    pin = {"name": name, "dataset_revision": sys.argv[2], "split": "train"} | wanted
    try:
        found = run(FetchDataPaths(hub_data=Path(name)), FetchDataParams(datasets=[pin])).model_dump_json()
    except UserError as error:
        found = json.dumps([type(error).__name__, str(error)])
    print(found)
"""


def fetch(folder: Path, endpoint: str, cases: dict) -> dict:
    """Case → its report, or what was raised: [class, message]."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(cases), COMMIT],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(folder / "cache"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(cases, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "inside"
    folder.mkdir()
    with local_hub() as hub:
        for name, files in REPOSITORIES.items():
            hub.datasets[f"org/{name}", COMMIT] = files
        hub.datasets["org/elsewhere", COMMIT] = {"README.md": ELSEWHERE % OTHER.encode()}
        hub.datasets["org/elsewhere", OTHER] = {"train.csv": CSV}
        return folder, fetch(folder, hub.url, WANTED)


def rows(fetched, name: str) -> list:
    folder, reports = fetched
    assert "datasets" in reports[name], reports[name]
    return pq.read_table(folder / name / f"{name}.parquet").to_pylist()


def test_rows_arrive_as_they_are_with_the_names_of_the_labels(fetched):
    assert rows(fetched, "plain") == [
        {"text": "bad", "label": 0},
        {"text": "good", "label": 1},
        {"text": "odd", "label": -1},
    ]
    metadata = pq.read_schema(fetched[0] / "plain/plain.parquet").metadata[b"huggingface"]
    assert json.loads(metadata)["info"]["features"]["label"]["names"] == ["negative", "positive"]


def test_the_index_names_origin_licence_rows_and_bytes(fetched):
    folder, reports = fetched
    index = read_json(folder / "plain/index.json")
    assert index == {
        "plain": {
            "dataset_name": "org/plain",
            "dataset_revision": COMMIT,
            "dataset_config": None,
            "split": "train",
            "license": "mit",
            "columns": ["text", "label"],
            "rows": 3,
            "sha256": sha256_file(folder / "plain/plain.parquet"),
        }
    }
    assert reports["plain"] == {
        "applies": True,
        "rows": None,
        "datasets": [index["plain"] | {"name": "plain"}],
    }
    assert sorted(found.name for found in (folder / "plain").iterdir()) == ["index.json", "plain.parquet"]


def test_the_same_pins_give_the_same_bytes(fetched):
    folder, _ = fetched
    assert (folder / "again/again.parquet").read_bytes() == (folder / "plain/plain.parquet").read_bytes()


def test_a_configuration_and_a_split_are_chosen(fetched):
    assert rows(fetched, "small") == [{"text": "a", "label": "1"}, {"text": "b", "label": "2"}]
    assert rows(fetched, "large") == [{"text": "four", "label": "x", "other": "y"}]
    assert fetched[1]["large"]["datasets"][0]["license"] == "mit, cc0-1.0"


def test_the_values_of_a_csv_file_stay_the_strings_that_they_are(fetched):
    assert rows(fetched, "strings") == [
        {"text": "one, two", "label": "NA", "other": ""},
        {"text": "three", "label": "01", "other": "1e5"},
    ]


def test_params_state_the_licence_that_no_card_names(fetched):
    assert fetched[1]["licensed"]["datasets"][0]["license"] == "cc0-1.0"
    assert fetched[1]["licensed"]["datasets"][0]["rows"] == 2


@pytest.mark.parametrize(
    ("case", "named"),
    [
        ("absent", f"the hub has no org/absent at {COMMIT}"),
        ("wrong_commit", f"the hub has no org/plain at {OTHER}"),
        ("wrong_config", "BuilderConfig 'middle' not found. Available: ['small', 'large']"),
        ("wrong_split", "Unknown split \"validation\". Should be one of ['train']"),
        ("no_card", "its card names no licence"),
        ("scripted", "Dataset scripts are no longer supported, but found scripted.py"),
        ("pictures", "of the kind imagefolder; only csv, json, parquet are read"),
        (
            "elsewhere",
            f"names a file outside this commit, which nothing pins: hf://datasets/org/elsewhere@{OTHER}/train.csv",
        ),
        ("broken", "Parquet"),
        ("ragged", "Expected 2 fields in line 3, saw 3"),
        ("empty", "doesn't contain any data files"),
        ("no_rows", "no row"),
        ("zipped", "train.zip is an archive, which is not unpacked here"),
        ("climbing", "No (supported) data files found in org/climbing"),
        ("cut_zip", "not a zip file"),
    ],
)
def test_what_can_not_be_used_is_refused_by_name(fetched, case, named):
    folder, reports = fetched
    kind, message = reports[case]
    assert kind == "UserError"
    assert message.startswith(f"fetch_data.datasets: {case}: ") and named in message and "\n" not in message
    assert not (folder / case).exists()
    assert not list(folder.glob(".*~*")) and not list(folder.parent.rglob("*evil*"))


def test_a_hub_that_does_not_answer_is_told_apart(tmp_path):
    # Nothing listens on the discard port of the loopback.
    (kind, message) = fetch(tmp_path, "http://127.0.0.1:9", {"away": {"dataset_name": "org/plain"}})["away"]
    assert kind == "Unreachable"
    assert message.startswith("fetch_data: the hub did not give org/plain (ConnectError).")
    assert not (tmp_path / "away").exists()


def test_without_a_data_set_there_is_an_empty_index(tmp_path):
    report = run(FetchDataPaths(hub_data=tmp_path / "hub"), FetchDataParams(datasets=[]))
    assert not report.applies and report.datasets == []
    assert [found.name for found in (tmp_path / "hub").iterdir()] == ["index.json"]
    assert read_json(tmp_path / "hub/index.json") == {}


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"dataset_revision": "main"}, "pattern"),
        ({"dataset_name": "imdb"}, "pattern"),
        ({"dataset_name": "../imdb"}, "pattern"),
        ({"name": "a/b"}, "pattern"),
    ],
)
def test_a_data_set_is_pinned_and_named_in_full(wrong, named):
    pin = {"name": "a", "dataset_name": "org/a", "dataset_revision": COMMIT, "split": "train"}
    DatasetParams(**pin)
    with pytest.raises(ValueError, match=named):
        DatasetParams(**(pin | wrong))


def test_names_are_distinct():
    pin = DatasetParams(name="a", dataset_name="org/a", dataset_revision=COMMIT, split="train")
    with pytest.raises(ValueError, match="distinct names"):
        FetchDataParams(datasets=[pin, pin])
