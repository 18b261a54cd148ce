"""`tunewright compare A B`: two revisions of the project held against each other on the rows of test of the second.

The first one's model comes from DVC's cache, or its remote, into a temporary folder, and is asked again; of the second
one the predictions are there already. Nothing of the working folder is changed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows import registry
from flows.graph import fetch_at, read_at
from flows.processes import child_environment, end_group
from tunewright.errors import EXIT_CRASH, EXIT_UNREACHABLE, Unreachable, UserError
from tunewright.files import canonical_json, read_json, read_parquet, sha256_tree, write_parquet, write_text
from tunewright.params import PARAMS_FILE, Params, load_params
from tunewright.stage import STATE

if TYPE_CHECKING:
    import pyarrow as pa

    from tunewright.comparison import Comparison, FairnessComparison, Side

CHAMPION = "champion"
HERE = "the working folder"


@dataclass(frozen=True)
class Revision:
    """One state of the project: a commit, or with None the working folder.   params: its params.yaml, unchecked: an
    earlier version of Tunewright may have written it."""

    name: str
    commit: str | None
    params: dict[str, Any]

    def path(self, name: str, *parts: str) -> Path:
        """A path of its params."""
        try:
            return Path(self.params["paths"][name], *parts)
        except (KeyError, TypeError) as error:
            raise UserError(f"params.yaml of {self.name}: it has no paths.{name}.") from error

    def report(self, stage: str) -> Any:
        """What a stage reported."""
        path = self.path("reports", f"{stage}.json")
        if self.commit is None:
            return read_json(path)
        try:
            return json.loads(read_at(path, self.commit))
        except ValueError as error:
            raise UserError(f"{path} of {self.name}: not valid JSON ({error}).") from error

    def fetch(self, paths: Sequence[Path], scratch: Path) -> list[Path]:
        """Where its files stand: in the working folder, or copied from DVC's cache into a folder of `scratch`."""
        if self.commit is None:
            return list(paths)
        folder = scratch / self.commit
        fetch_at(paths, self.commit, folder)
        return [folder / path for path in paths]

    def setting(self, section: str, key: str) -> Any:
        """A key of a section; None where it has none."""
        found = self.params.get(section)
        return found.get(key) if isinstance(found, dict) else None


def revision(name: str | None) -> Revision:
    """A state of the project by its name: a branch, a tag, a commit, `champion`; None is the working folder.

    Raises
        UserError  where git knows none of that name, or there is no champion.
    """
    if name is None:
        return Revision(HERE, None, _yaml(PARAMS_FILE.read_text(encoding="utf-8"), HERE))
    if name == CHAMPION:
        champion = registry.champion()
        if champion is None:
            raise UserError("there is no champion yet: `tunewright promote` makes one.")
        return Revision(champion.name, champion.commit, _params_at(champion.commit, champion.name))
    commit = registry.commit_of(name)
    return Revision(name, commit, _params_at(commit, name))


def compare(first: Revision, second: Revision) -> Comparison:
    """Hold the second against the first, by the section `champion` of the working folder's params.yaml.

    Raises
        UserError    where an output of either is not there, or is of other rows.
        Unreachable  where DVC's remote did not answer.
    """
    from tunewright import comparison as comparing

    params = load_params()
    settings = params.value("champion")
    sides = (_side(first), _side(second))
    if sides[0].model_sha256 == sides[1].model_sha256:
        return comparing.without_rows(sides, "same_model", "both are the same model", settings)
    if reason := _incomparable(first, second):
        return comparing.without_rows(sides, "not_comparable", reason, settings)
    STATE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=STATE, prefix="compare-") as scratch:
        found = _compared(first, second, sides, params, Path(scratch))
    return found.model_copy(update={"fairness": fairness(first, second)})


def fairness(first: Revision, second: Revision) -> list[FairnessComparison]:
    """What both reports of `audit_model` found, beside the deciding metric of `evaluate`; empty where no group was
    compared in either."""
    from tunewright import comparison as comparing

    evaluated, audited = zip(*((of.report("evaluate"), _audit(of)) for of in (first, second)), strict=True)
    return comparing.fairness(evaluated, audited)


def _audit(of: Revision) -> Any:
    """The report of `audit_model`; None of a revision from before there was one."""
    try:
        return of.report("audit_model")
    except Unreachable:
        raise
    except UserError:
        return None


def _compared(first: Revision, second: Revision, sides: tuple[Side, Side], params: Params, scratch: Path) -> Comparison:
    import numpy as np
    import pyarrow as pa

    from tunewright.comparison import Rows, compare, unseen
    from tunewright.predictions import read_test
    from tunewright.rescore import task_of

    task = task_of(second.params.get("task", {}), second.name)
    prepared = [first.path("prepared", f"{split}.parquet") for split in ("train", "validation")]
    *learned, model = first.fetch([*prepared, first.path("tuned_model")], scratch)
    if sha256_tree(model) != sides[0].model_sha256:
        raise UserError(f"{model}: not the model that {first.name} evaluated. Run `dvc repro` there.")
    test_file, predictions_file = second.fetch(
        [second.path("prepared", "test.parquet"), second.path("predictions")], scratch
    )
    test = read_parquet(test_file)
    predictions = read_test(predictions_file, test)
    if predictions is None:
        raise UserError(f"{second.path('predictions')} of {second.name}: no predictions of test. Run `dvc repro`.")
    new = unseen(test, (read_parquet(file, columns=["row_id", "text"]) for file in learned))
    # What the second was not asked, as a text beyond `generation.max_rows`, need not be asked of the first.
    asked = pa.array(new & np.isfinite(task.scores(predictions)))
    ours, rows = predictions.filter(asked), test.filter(asked)
    counted = Rows(test=test.num_rows, learned=int((~new).sum()))
    theirs = _rescored(first, model, rows, params, scratch) if rows.num_rows else ours
    return compare(
        task, sides, (theirs, ours), counted, params.value("champion"), params.value("evaluate"), params.seed
    )


def _rescored(first: Revision, model: Path, rows: pa.Table, params: Params, scratch: Path) -> pa.Table:
    """What the first one's model says of rows, asked in a process of its own."""
    from tunewright.rescore import Job

    evaluate = params.value("evaluate")
    job = Job(
        name=first.name,
        model=model,
        rows=scratch / "rows.parquet",
        predictions=scratch / "predictions.parquet",
        task=first.params["task"],
        max_length=first.params["tokenize"]["max_length"],
        generation=first.setting("evaluate", "generation"),
        per_device_eval_batch_size=evaluate.per_device_eval_batch_size,
        max_tokens_per_batch=evaluate.max_tokens_per_batch,
        seed=params.seed,
        num_threads=params.num_threads,
    )
    write_parquet(rows, job.rows)
    write_text(scratch / "job.json", canonical_json(job.model_dump(mode="json")))
    command = [sys.executable, "-m", "tunewright.rescore", str(scratch / "job.json")]
    with subprocess.Popen(
        command, env=child_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, process_group=0
    ) as process:
        try:
            _, told = process.communicate()
        except BaseException:
            end_group(process)
            raise
    if process.returncode:
        last = " / ".join([line for line in told.splitlines() if line.strip()][-3:])
        kind = Unreachable if process.returncode == EXIT_UNREACHABLE else UserError
        if process.returncode in (EXIT_CRASH, *range(-64, 0)):
            raise RuntimeError(f"{first.name} could not be asked again (exit status {process.returncode}): {last}")
        raise kind(f"{first.name}: {last}")
    return read_parquet(job.predictions)


def _side(of: Revision) -> Side:
    from tunewright.comparison import Side

    method, feature = (of.setting("mitigate", key) for key in ("method", "sensitive_feature"))
    return Side(
        name=of.name,
        commit=of.commit,
        model_sha256=of.report("evaluate")["model_sha256"],
        mitigation=f"{method} by {feature}" if feature else str(method or "none"),
    )


def _incomparable(first: Revision, second: Revision) -> str | None:
    """Why the answers of one are no answers to the questions of the other; None where they are."""
    for key in ("type", "labels"):
        before, now = first.setting("task", key), second.setting("task", key)
        if before != now:
            return f"task.{key}: {before!r} in {first.name}, {now!r} in {second.name}"
    return None


def _params_at(commit: str, name: str) -> dict[str, Any]:
    return _yaml(read_at(PARAMS_FILE, commit), name)


def _yaml(text: str, name: str) -> dict[str, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        found = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise UserError(f"params.yaml of {name}: not valid YAML.") from error
    if not isinstance(found, dict):
        raise UserError(f"params.yaml of {name}: holds no sections.")
    return found
