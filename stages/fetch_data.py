"""Fetch data sets of the Hugging Face Hub, each at the commit that params pin.

Reads   nothing of this project: fetch_data.datasets names each data set and its commit
Writes  paths.hub_data    NAME.parquet for each data set, which a source of ingest reads by `dataset: NAME`; and
                          index.json: where each comes from, its licence, rows and SHA-256
Report  paths.reports/fetch_data.json

Only data files are read (Parquet, CSV, JSON), never a loading script; and only those of the commit itself, since
nothing else is pinned. The names of class labels stand in the schema that is written. A pinned commit gives the
same bytes, so the stage runs again when params name another one.
"""

from __future__ import annotations

import tempfile
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field

from tunewright.errors import Unreachable, UserError
from tunewright.files import atomic_folder, sha256_file, write_json
from tunewright.params import Section
from tunewright.report import Report
from tunewright.stage import Out, Paths, run_stage

INDEX = "index.json"
KINDS = ("csv", "json", "parquet")  # of data files; each is a module of `datasets` that reads them
ARCHIVES = (".7z", ".rar", ".tar", ".tgz", ".zip")  # which `datasets` would unpack, however large what they hold
LONGEST = 300  # characters of a library's message that are passed on

Name = Annotated[str, Field(min_length=1)]


class DatasetParams(Section):
    """One data set of the Hub, and which part of it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    dataset_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9_.-]+$")]
    dataset_revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    dataset_config: Name | None = None
    split: Name
    license: Name | None = None


def _distinct(found: list[DatasetParams]) -> list[DatasetParams]:
    if len({dataset.name for dataset in found}) != len(found):
        raise ValueError("distinct names")
    return found


class FetchDataParams(Section):
    """The section `fetch_data` of params.yaml."""

    datasets: Annotated[list[DatasetParams], AfterValidator(_distinct)]


class FetchDataPaths(Paths):
    """What fetch_data writes."""

    hub_data: Out


class DatasetReport(BaseModel):
    """What was fetched. `sha256` is of NAME.parquet."""

    name: str
    dataset_name: str
    dataset_revision: str
    dataset_config: str | None
    split: str
    license: str
    columns: list[str]
    rows: int
    sha256: str


class FetchDataReport(Report):
    """Every data set that params name; `applies` is false where they name none."""

    datasets: list[DatasetReport]


def run(paths: FetchDataPaths, params: FetchDataParams) -> FetchDataReport:
    """Fetch every data set into paths.hub_data.

    Raises
        UserError    a data set, commit, configuration or split that the Hub does not have; files of another kind than
                     Parquet, CSV and JSON, archives, files from elsewhere, or broken ones; no row; no licence.
        Unreachable  the Hub did not answer.
    """
    with atomic_folder(paths.hub_data) as folder:
        fetched = [_fetch(dataset, folder / f"{dataset.name}.parquet") for dataset in params.datasets]
        write_json(folder / INDEX, {found.name: found.model_dump(exclude={"name"}) for found in fetched})
    return FetchDataReport(applies=bool(fetched), datasets=fetched)


def _fetch(wanted: DatasetParams, path: Path) -> DatasetReport:
    from zipfile import BadZipFile

    import httpx2
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    hub_id = f"{wanted.dataset_name} at {wanted.dataset_revision}"
    try:
        stated = _license(wanted)
        with tempfile.TemporaryDirectory(dir=path.parent) as cache:
            dataset = _load(wanted, cache)
            dataset.to_parquet(path)
            rows, columns = len(dataset), dataset.column_names
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UserError(
            f"fetch_data.datasets: {wanted.name}: the hub has no {hub_id}, or it asks for a token: HF_TOKEN."
        ) from error
    except (httpx2.HTTPError, HfHubHTTPError, LocalEntryNotFoundError, ConnectionError) as error:
        raise Unreachable(
            f"fetch_data: the hub did not give {wanted.dataset_name} ({type(error).__name__}). Check the network or "
            f"HF_ENDPOINT, then run again; or put the data into paths.raw and name it by `path`."
        ) from error
    except (BadZipFile, DatasetsError, FileNotFoundError, RuntimeError, ValueError) as error:
        raise UserError(f"fetch_data.datasets: {wanted.name}: {hub_id}: {_explained(error)}") from error
    return DatasetReport(
        **wanted.model_dump(exclude={"license"}), license=stated, columns=columns, rows=rows, sha256=sha256_file(path)
    )


def _license(wanted: DatasetParams) -> str:
    """The licence that the data set's card names, else the one that params state."""
    from huggingface_hub import HfApi

    card = HfApi().dataset_info(wanted.dataset_name, revision=wanted.dataset_revision).card_data
    named = card.get("license") if card is not None else None
    found = ", ".join(named) if isinstance(named, list) else named or wanted.license
    if not found:
        raise ValueError("its card names no licence. State it in `license`, once you have read it.")
    return found


def _load(wanted: DatasetParams, cache: str) -> Any:
    """The split, as a `datasets.Dataset` that is mapped from files in the folder `cache`."""
    import datasets

    datasets.disable_progress_bars()
    repository = f"hf://datasets/{wanted.dataset_name}"
    builder = datasets.load_dataset_builder(
        repository, name=wanted.dataset_config, revision=wanted.dataset_revision, cache_dir=cache
    )
    kind = type(builder).__module__.rpartition(".")[2]
    if kind not in KINDS:
        raise ValueError(f"its data files are of the kind {kind}; only {', '.join(KINDS)} are read.")
    files = [file for split in (builder.config.data_files or {}).values() for file in split]
    outside = [file for file in files if not file.startswith(f"{repository}@{wanted.dataset_revision}/")]
    if outside:
        raise ValueError(f"it names a file outside this commit, which nothing pins: {outside[0]}")
    if archives := [file for file in files if set(ARCHIVES) & set(PurePosixPath(file).suffixes[-2:])]:
        raise ValueError(
            f"{PurePosixPath(archives[0]).name} is an archive, which is not unpacked here: too little is known "
            "of what is in it. Unpack it where you trust it, into paths.raw, and name it by `path`."
        )
    if kind == "csv" and builder.config.features is None:
        _read_as_strings(builder.config, wanted, files[0].removeprefix(f"{repository}@{wanted.dataset_revision}/"))
    try:
        builder.download_and_prepare()
    except StopIteration:  # what `datasets` ends with where a JSON file is empty
        raise ValueError("a JSON file of it holds no row.") from None
    dataset = builder.as_dataset(split=wanted.split)
    if not len(dataset):
        raise ValueError(f"its split {wanted.split} holds no row.")
    return dataset


def _read_as_strings(config: Any, wanted: DatasetParams, file: str) -> None:
    """Let every column of CSV files be text where the card says no other: "01", "NA" and "1e5" stay what they are."""
    import datasets
    import pandas as pd
    from huggingface_hub import hf_hub_download

    path = hf_hub_download(wanted.dataset_name, file, repo_type="dataset", revision=wanted.dataset_revision)
    header = pd.read_csv(path, **(config.pd_read_csv_kwargs | {"nrows": 0, "chunksize": None}))
    config.features = datasets.Features(dict.fromkeys(header.columns, datasets.Value("string")))
    config.keep_default_na = False


def _explained(error: Exception) -> str:
    """The first line of the message; of files that can't be read, of the cause: `datasets` says only that it failed."""
    found = error.__cause__ if type(error).__name__ == "DatasetGenerationError" and error.__cause__ else error
    line = next((line for line in str(found).splitlines() if line.strip()), type(found).__name__)
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"


if __name__ == "__main__":
    run_stage(run)
