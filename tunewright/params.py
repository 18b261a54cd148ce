"""Reads `params.yaml`: strict, and every fault of the file at once.

DVC runs happily with a mistyped key (the stage just never sees it), so each stage validates the whole file
before it works. A section's class stands in its stage's module, a task's in its own file; both are found by
name, which is why adding a stage or a task type touches nothing here.

The file is read by ruamel.yaml with YAML 1.2 rules, as DVC reads it, so `1e-5` is a number for both.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from tunewright.errors import UserError

PARAMS_FILE = Path("params.yaml")

# What peers call a key of ours (LLaMA-Factory, Axolotl, torchtune, LitGPT, older Transformers).
PEER_NAMES = {
    "base_model": "model_name_or_path",
    "batch_size": "per_device_train_batch_size",
    "block_size": "max_length",
    "cutoff_len": "max_length",
    "early_stop": "early_stopping_patience",
    "early_stopping_steps": "early_stopping_patience",
    "epochs": "num_train_epochs",
    "facet": "sensitive_features",
    "gradient_clipping": "max_grad_norm",
    "lr": "learning_rate",
    "lr_scheduler": "lr_scheduler_type",
    "max_seq_length": "max_length",
    "micro_batch_size": "per_device_train_batch_size",
    "num_epochs": "num_train_epochs",
    "optimizer": "optim",
    "revision": "model_revision",
    "sequence_len": "max_length",
    "warmup_ratio": "warmup_steps",
}


class Section(BaseModel):
    """The base of every section of params.yaml: unknown keys, NaN and wrong types are faults; values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


class PathsParams(Section):
    """Where each file stands, spelled once; dvc.yaml refers to it as `${paths.NAME}`. Relative to params.yaml."""

    raw: str = Field(min_length=1, description="the file or folder of raw data that DVC watches")
    model_source: str = Field(min_length=1, description="the file or folder that pins the base model")
    ingested: str
    data_docs: str
    prepared: str
    data_passed: str
    base_model: str
    tokens: str
    tokenize_plots: str
    tuned_model: str
    curves: str
    baseline_predictions: str
    predictions: str
    evaluate_plots: str
    report_page: str
    model_passed: str
    export: str
    reports: str


class TaskParams(Section):
    """The base of every task type's own params: the section `task`."""

    type: str = Field(pattern=r"^[a-z0-9_]+$")


class Params(BaseModel):
    """The whole of params.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    seed: int = Field(ge=0, lt=2**32)
    num_threads: int = Field(ge=1, le=256, description="threads of every stage that computes: an input, not a hint")
    paths: PathsParams
    task: TaskParams

    def value(self, dotted: str) -> Any:
        """The value of a dotted key, as `finetune.learning_rate`."""
        value: Any = self
        for part in dotted.split("."):
            value = getattr(value, part)
        return value

    def path(self, name: str) -> Path:
        """The path of that name: a key of `paths`, or `STAGE_report` for a stage's report."""
        stage = name.removesuffix("_report")
        if stage != name:
            return Path(self.paths.reports) / f"{stage}.json"
        return Path(self.value(f"paths.{name}"))


def stage_names() -> list[str]:
    """The names of all stages: the modules of `stages/`, sorted."""
    import stages

    return sorted(module.name for module in pkgutil.iter_modules(stages.__path__))


def section_class(stage: str) -> type[Section] | None:
    """The Section class that stands in a stage's module, or None where the stage has nothing to set."""
    module = importlib.import_module(f"stages.{stage}")
    name = "".join(word.capitalize() for word in stage.split("_")) + "Params"
    found: type[Section] | None = getattr(module, name, None)
    return found


def task_types() -> list[str]:
    """The names of all task types: the modules of `tunewright/task_types/`, sorted."""
    from tunewright import task_types as package

    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def _model(raw: dict[str, Any]) -> type[Params]:
    fields: dict[str, Any] = {}
    for stage in stage_names():
        section = section_class(stage)
        if section is not None:
            fields[stage] = (section, ...)
    task = raw.get("task")
    name = task.get("type") if isinstance(task, dict) else None
    if name in task_types():
        module = importlib.import_module(f"tunewright.task_types.{name}")
        fields["task"] = (module.TaskParams, ...)
    return create_model("Params", __base__=Params, **fields)


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and validate params.yaml.

    Raises
        UserError  one message that lists every fault with its line, key, what was found and what is allowed.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        raw = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found. Run from the project's folder, the one that holds params.yaml.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}. Save the file as UTF-8.") from error
    except YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f":{where.line + 1}" if where is not None else ""
        problem = getattr(error, "problem", None) or str(error)
        raise UserError(f"{path}{line}: not valid YAML: {problem.splitlines()[0]}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected sections such as `task:` and `finetune:`, found {_shown(raw)}.")
    model = _model(raw)
    try:
        params = model.model_validate(raw)
    except ValidationError as error:
        faults = [_fault(detail, model, raw, path) for detail in error.errors()]
        raise UserError(_together(path, faults)) from error
    if params.task.type not in task_types():
        near = _nearest(params.task.type, task_types())
        fault = f"task.type: found {params.task.type!r}; known task types: {', '.join(task_types())}.{near}"
        raise UserError(_together(path, [fault]))
    return params


def _together(path: Path, faults: list[str]) -> str:
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    return f"{path}: {count}\n" + "\n".join(f"  {fault}" for fault in faults)


def _fault(detail: ErrorDetails, model: type[BaseModel], raw: dict[str, Any], path: Path) -> str:
    location = tuple(part for part in detail["loc"] if not (isinstance(part, str) and part.startswith("function-")))
    dotted = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    line = _line_of(location, path)
    place = f"line {line}: {dotted}" if line else dotted
    kind = detail["type"]
    if kind == "extra_forbidden":
        known = _keys_at(model, location[:-1])
        key = str(location[-1])
        if PEER_NAMES.get(key) in known:
            return f"{place}: unknown key; here it is called `{PEER_NAMES[key]}`."
        home = [stage for stage in model.model_fields if key in _keys_at(model, (stage,))]
        hint = _nearest(key, known) or (f" The section `{home[0]}` has a key of this name." if home else "")
        return f"{place}: unknown key.{hint or f' Allowed here: {", ".join(sorted(known))}.'}"
    if kind == "missing":
        field = _field_at(model, location)
        meaning = f" ({field.description})" if field is not None and field.description else ""
        return f"{place}: missing{meaning}. Add it; docs/params.md lists every key."
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return f"{place}: found {_shown(detail['input'])}; expected {message}."


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return f"a section with keys {', '.join(map(str, list(value)[:6]))}" if value else "an empty section"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _nearest(key: str, known: list[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f" Did you mean `{close[0]}`?" if close else ""


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _field_at(model: type[BaseModel], location: tuple[int | str, ...]) -> FieldInfo | None:
    parents: list[type[BaseModel]] = [model]
    field: FieldInfo | None = None
    for part in location:
        if isinstance(part, int):
            continue
        field = next((parent.model_fields[part] for parent in parents if part in parent.model_fields), None)
        if field is None:
            return None
        parents = list(_models_in(field.annotation))
    return field


def _keys_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    if not location:
        return list(model.model_fields)
    field = _field_at(model, location)
    return [key for found in _models_in(field.annotation) for key in found.model_fields] if field else []


def _line_of(location: tuple[int | str, ...], path: Path) -> int | None:
    """The line of a key, or of the nearest section above it that stands in the file; None for the file itself."""
    from ruamel.yaml import YAML

    node = YAML(typ="rt").load(path.read_text(encoding="utf-8"))
    line: int | None = None
    for part in location:
        try:
            line = (node.lc.item(part) if isinstance(part, int) else node.lc.key(part))[0] + 1
            node = node[part]
        except (KeyError, IndexError, TypeError, AttributeError):
            break
    return line


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
