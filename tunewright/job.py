"""A job in three lines of Python, for a notebook: the stages' own functions, in this process.

    from tunewright.job import load

    job = load("params.yaml", {"finetune.max_steps": 20})
    job.fit()
    job.evaluate()

Nothing is cached and no lock is written: a run that others shall trust goes through `dvc repro` or `tunewright run`,
and a job that is worth keeping is moved there as it is, by its params. All outputs lie in a folder of their own.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

from tunewright.files import atomic_file
from tunewright.params import Params, load_params, stage_names
from tunewright.report import Report
from tunewright.stage import QUIET, SPIN, Paths, arguments


class Job:
    """The stages of a project on one params file, run as they are needed, each once.

    `reports` holds what each stage that has run reported, by its name.
    """

    def __init__(self, params: Params, folder: Path) -> None:
        self.params = params
        self.folder = folder
        self.reports: dict[str, Report] = {}
        self._producers = {
            field: stage for stage in stage_names() for field, kind in _fields(stage) if kind == "out"
        } | {f"{stage}_report": stage for stage in stage_names()}

    def fit(self) -> Any:
        """Everything up to the tuned model; returns what `finetune` reports."""
        return self.run("finetune")

    def evaluate(self) -> Any:
        """How good it is, with intervals and margins; returns what `evaluate` reports."""
        return self.run("evaluate")

    def report(self) -> Path:
        """The page with the verdict, the metrics and the pictures; returns where it stands."""
        self.run("report")
        return self.path("report_page")

    def run(self, stage: str) -> Any:
        """Run a stage and what it needs; what has run in this job is not run again. Returns the stage's report.

        Raises
            UserError  as the stage itself does: bad input, a closed gate.
        """
        for name in self.needed(stage):
            if name in self.reports:
                continue
            run = importlib.import_module(f"stages.{name}").run
            built = {key: self._placed(value) for key, value in arguments(run, self.params).items()}
            found: Report = run(**built)
            found.write(self.path(f"{name}_report"))
            self.reports[name] = found
        return self.reports[stage]

    def needed(self, stage: str) -> list[str]:
        """The stages that a stage needs, itself last, each after those that it needs."""
        found: dict[str, None] = {}
        self._collect(stage, found)
        return list(found)

    def _collect(self, stage: str, found: dict[str, None]) -> None:
        for field, kind in _fields(stage):
            above = self._producers.get(field)
            if kind == "dep" and above is not None and above not in found:
                self._collect(above, found)
        found[stage] = None

    def path(self, name: str) -> Path:
        """Where this job has the file or folder of that name: a key of `paths`, or `STAGE_report`."""
        found = self.params.path(name)
        return self.folder / found if name in self._producers else found

    def _placed(self, argument: Any) -> Any:
        if not isinstance(argument, Paths):
            return argument
        return argument.model_copy(update={field: self.path(field) for field in type(argument).model_fields})


def load(
    params: str | Path = "params.yaml",
    changes: Mapping[str, Any] | None = None,
    folder: str | Path = "runs/python",
) -> Job:
    """A job by its params file, in the project's folder.

    changes: dotted keys of params.yaml to other values, such as {"finetune.learning_rate": 3e-5}.
    folder: where all its outputs lie; the params as they were used stand there too.

    Raises
        UserError  every fault of the params at once, those of the changes too.
    """
    for name, value in (QUIET | SPIN).items():
        os.environ.setdefault(name, value)
    folder = Path(folder)
    used = folder / "params.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    _write(Path(params), changes or {}, used)
    return Job(load_params(used), folder)


def _write(params: Path, changes: Mapping[str, Any], used: Path) -> None:
    from ruamel.yaml import YAML

    load_params(params)  # of a fault in the user's own file, the message names that file
    yaml = YAML()
    found = yaml.load(params)
    for dotted, value in changes.items():
        *sections, key = dotted.split(".")
        place = found
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    with atomic_file(used) as staging:
        yaml.dump(found, staging)


def _fields(stage: str) -> Iterator[tuple[str, str]]:
    """The paths of a stage: name, and `dep` or `out`."""
    run = importlib.import_module(f"stages.{stage}").run
    for hint in get_type_hints(run, include_extras=True).values():
        if isinstance(hint, type) and issubclass(hint, Paths):
            kinds = get_type_hints(hint, include_extras=True)
            for field in hint.model_fields:
                yield field, get_args(kinds[field])[1]
