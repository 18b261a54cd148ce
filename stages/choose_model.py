"""Choose the base model, where `fetch_model.model_name_or_path: auto` leaves it open; else hand on what is set.

Reads   paths.reports/ingest.json   how many rows there are
Writes  paths.model_choice          model_name_or_path, model_revision, license: nothing else, so that other rows
                                    which leave the choice alone make nothing below run again
Report  paths.reports/choose_model.json: every candidate, what it needs, and why it was passed over

The largest candidate is taken that the task can be done with, in the task's own order of kinds, and that keeps within
the limits of params. The machine is not asked: the same params and rows give the same choice anywhere.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, model_validator

from tunewright.base_models import AUTO, check_pinned
from tunewright.errors import UserError
from tunewright.files import read_json, write_json
from tunewright.gates import license_fault
from tunewright.memory import rough_bytes, training_flops
from tunewright.params import Section
from tunewright.report import Report
from tunewright.stage import Dep, Key, Out, Paths, run_stage
from tunewright.task import Architecture, TaskType

NO_CANDIDATES = (
    "choose_model.candidates: found none, and fetch_model.model_name_or_path is auto. Name some; docs/params.md says "
    "what each needs."
)
GB = 1e9
PETA = 1e15


class Candidate(Section):
    """A base model, and what its config and card say of it; `local_folder`'s and the Hub's names as in fetch_model."""

    model_name_or_path: str = Field(min_length=1)
    model_revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")
    license: str | None = Field(default=None, min_length=1)
    kinds: Annotated[list[Architecture], Field(min_length=1)]
    parameters: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    num_hidden_layers: int = Field(ge=1)
    vocab_size: int = Field(ge=1)
    max_length: int = Field(ge=1, description="tokens")
    languages: list[str] = Field(default_factory=list, description="by ISO 639 code; none: not stated")
    note: str | None = None

    @model_validator(mode="after")
    def _is_pinned(self) -> Self:
        if self.model_name_or_path == AUTO:
            raise ValueError("a model's name, not auto")
        check_pinned(self.model_name_or_path, self.model_revision)
        return self


class ChooseModelParams(Section):
    """The candidates, and the limits that they must keep."""

    max_memory_gb: float = Field(gt=0, description="peak of the training's memory, in 10^9 bytes")
    max_training_petaflop: float = Field(gt=0, description="10^15 floating-point operations of the whole training")
    language: str | None = Field(min_length=2, description="of the texts, by ISO 639 code; null: not asked")
    candidates: list[Candidate]


class ChooseModelPaths(Paths):
    ingest_report: Dep
    model_choice: Out


class Judged(BaseModel):
    """One candidate. `refused` is empty for one that would do."""

    model_name_or_path: str
    memory_gb: float
    training_petaflop: float
    refused: list[str]
    note: str | None


class ChooseModelReport(Report):
    """`applies` is false where params name the model themselves."""

    model_name_or_path: str | None
    reason: str
    ingested_rows: int
    candidates: list[Judged] = Field(default_factory=list)


def run(
    paths: ChooseModelPaths,
    params: ChooseModelParams,
    task: TaskType,
    name: Annotated[str | None, Key("fetch_model.model_name_or_path")],
    revision: Annotated[str | None, Key("fetch_model.model_revision")],
    model_license: Annotated[str | None, Key("fetch_model.license")],
    finetuning_type: Annotated[str, Key("finetune.finetuning_type")],
    optim: Annotated[str, Key("finetune.optim")],
    batch_size: Annotated[int, Key("finetune.per_device_train_batch_size")],
    epochs: Annotated[float, Key("finetune.num_train_epochs")],
    max_length: Annotated[int, Key("tokenize.max_length")],
    allowed_licenses: Annotated[list[str] | None, Key("gate_data.allowed_licenses")],
) -> ChooseModelReport:
    """Write the choice.

    Raises
        UserError  no candidate will do, with the reasons of each.
    """
    rows = read_json(paths.ingest_report)["rows"]["rows_kept"]
    if name != AUTO:
        _write(paths, name, revision, model_license)
        return ChooseModelReport(
            applies=False,
            model_name_or_path=name,
            reason="set in fetch_model.model_name_or_path" if name else "none: new weights, from scratch",
            ingested_rows=rows,
        )
    judged = []
    for candidate in params.candidates:
        vocabulary = 0 if task.watched_metrics else candidate.vocab_size
        memory = rough_bytes(
            candidate.parameters,
            candidate.num_hidden_layers,
            candidate.hidden_size,
            vocabulary,
            finetuning_type=finetuning_type,
            optim=optim,
            batch_size=batch_size,
            length=max_length,
        )
        flops = training_flops(candidate.parameters, candidate.parameters, round(rows * max_length * epochs))
        judged.append(_judge(candidate, params, task, memory / GB, flops / PETA, max_length, rows, allowed_licenses))
        verdict = "; ".join(judged[-1].refused) or "would do"
        print(f"{candidate.model_name_or_path}: {verdict}", flush=True)
    fit = [pair for pair in zip(params.candidates, judged, strict=True) if not pair[1].refused]
    if not judged:
        raise UserError(NO_CANDIDATES)
    if not fit:
        listed = "\n".join(f"  {found.model_name_or_path}: {'; '.join(found.refused)}" for found in judged)
        raise UserError(
            f"choose_model: none of the candidates will do.\n{listed}\n"
            "Add one to choose_model.candidates, raise a limit, or name a model in fetch_model.model_name_or_path."
        )
    chosen, _ = min(fit, key=lambda pair: (_rank(pair[0], task), -pair[0].parameters))
    _write(paths, chosen.model_name_or_path, chosen.model_revision, chosen.license)
    reason = (
        f"the largest of {len(fit)} candidates that will do ({chosen.parameters:,} parameters)"
        if fit[1:]
        else f"the only one of {len(judged)} candidates that will do"
    )
    print(f"chosen: {chosen.model_name_or_path}, {reason}", flush=True)
    return ChooseModelReport(
        model_name_or_path=chosen.model_name_or_path, reason=reason, ingested_rows=rows, candidates=judged
    )


def check(params: ChooseModelParams, name: Annotated[str | None, Key("fetch_model.model_name_or_path")]) -> list[str]:
    """What can be seen wrong before anything runs (`tunewright check`): nothing to choose from."""
    return [NO_CANDIDATES] if name == AUTO and not params.candidates else []


def _judge(
    candidate: Candidate,
    params: ChooseModelParams,
    task: TaskType,
    memory_gb: float,
    petaflop: float,
    max_length: int,
    rows: int,
    allowed_licenses: list[str] | None,
) -> Judged:
    refused = []
    # Of one that params state no licence of, the model's own files may, and gate_data reads that.
    if allowed_licenses is not None and candidate.license and license_fault(candidate.license, allowed_licenses):
        refused.append(
            f"licence: {candidate.license}, and gate_data.allowed_licenses has {', '.join(allowed_licenses)}"
        )
    if _rank(candidate, task) == len(task.architectures):
        wanted = " or ".join(task.architectures)
        refused.append(f"wrong kind: {', '.join(candidate.kinds)}, and {task.params.type} takes {wanted}")
    if candidate.max_length < max_length:
        refused.append(f"too short: takes {candidate.max_length} tokens, and tokenize.max_length is {max_length}")
    if params.language and candidate.languages and params.language not in candidate.languages:
        refused.append(f"wrong language: {', '.join(candidate.languages)}, not {params.language}")
    if memory_gb > params.max_memory_gb:
        refused.append(f"too large: needs about {memory_gb:.1f} of {params.max_memory_gb:g} GB")
    if petaflop > params.max_training_petaflop:
        refused.append(
            f"too slow: up to {petaflop:.2g} petaFLOP for {rows:,} rows, and max_training_petaflop is "
            f"{params.max_training_petaflop:g}"
        )
    return Judged(
        model_name_or_path=candidate.model_name_or_path,
        memory_gb=round(memory_gb, 2),
        training_petaflop=round(petaflop, 4),
        refused=refused,
        note=candidate.note,
    )


def _rank(candidate: Candidate, task: TaskType) -> int:
    """The place of its fittest kind in the task's order; behind all of them where it has none."""
    ranks = [task.architectures.index(kind) for kind in candidate.kinds if kind in task.architectures]
    return min(ranks, default=len(task.architectures))


def _write(paths: ChooseModelPaths, name: str | None, revision: str | None, model_license: str | None) -> None:
    choice: dict[str, Any] = {"model_name_or_path": name, "model_revision": revision, "license": model_license}
    write_json(paths.model_choice, choice)


if __name__ == "__main__":
    run_stage(run)
