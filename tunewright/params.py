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
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model, field_validator
from pydantic.fields import FieldInfo

from tunewright.errors import UserError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

PARAMS_FILE = Path("params.yaml")

FLOW_SECTIONS = ("champion", "cost")
"""Sections that no stage reads: the flow acts on them. Each class stands in `tunewright/NAME.py`; a file
without such a section has its defaults."""

# What peers call a key of ours (LLaMA-Factory, Axolotl, torchtune, LitGPT, older Transformers).
PEER_NAMES = {
    "activation_checkpointing": "gradient_checkpointing",
    "adapter": "finetuning_type",
    "base_model": "model_name_or_path",
    "batch_size": "per_device_train_batch_size",
    "block_size": "max_length",
    "cutoff_len": "max_length",
    "early_stop": "early_stopping_patience",
    "early_stopping_steps": "early_stopping_patience",
    "epochs": "num_train_epochs",
    "facet": "sensitive_features",
    "gradient_clipping": "max_grad_norm",
    "label_smoothing": "label_smoothing_factor",
    "layerwise_decay": "layerwise_lr_decay",
    "llrd": "layerwise_lr_decay",
    "lora_rank": "lora_r",
    "lora_target": "lora_target_modules",
    "lr": "learning_rate",
    "lr_scheduler": "lr_scheduler_type",
    "max_seq_length": "max_length",
    "micro_batch_size": "per_device_train_batch_size",
    "num_epochs": "num_train_epochs",
    "optimizer": "optim",
    "peft": "finetuning_type",
    "peft_type": "finetuning_type",
    "revision": "model_revision",
    "sequence_len": "max_length",
    "unfrozen_parameters": "freeze_trainable_modules",
    "warmup_ratio": "warmup_steps",
}


class Section(BaseModel):
    """The base of every section of params.yaml: unknown keys, NaN and wrong types are faults; values are frozen."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        defer_build=True,  # each is built once, in the model of the whole file, and not by itself before
    )


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
ProjectPath = Annotated[str, Field(min_length=1)]


class PathsParams(Section):
    """Where each file stands, spelled once; dvc.yaml refers to it as `${paths.NAME}`. Relative to params.yaml."""

    raw: ProjectPath = Field(description="the file or folder of raw data that DVC watches")
    model_source: ProjectPath = Field(description="the file or folder that pins the base model")
    hub_data: ProjectPath = Field(description="the folder of the data sets that fetch_data fetched")
    ingested: ProjectPath
    quarantine: ProjectPath
    data_docs: ProjectPath
    prepared: ProjectPath
    drift_reference: ProjectPath = Field(description="the profile of the data last accepted; git tracks it")
    drift_plots: ProjectPath
    lexicon: ProjectPath = Field(description="identity terms by attribute and group; git tracks it")
    training_weights: ProjectPath = Field(description="how mitigate weighs or repeats the rows of train")
    data_passed: ProjectPath
    model_choice: ProjectPath
    fetched_model: ProjectPath
    base_model: ProjectPath
    tokens: ProjectPath
    tokenize_plots: ProjectPath
    features: ProjectPath = Field(description="what the frozen layers of the base model give for each row")
    find_lr_plots: ProjectPath
    tuned_model: ProjectPath
    curves: ProjectPath
    baseline_predictions: ProjectPath
    base_predictions: ProjectPath
    predictions: ProjectPath
    evaluate_plots: ProjectPath
    control: ProjectPath = Field(description="control.json: the temperature, when to abstain, how it may write")
    control_plots: ProjectPath
    audit_model_plots: ProjectPath
    explain_page: ProjectPath
    explain_plots: ProjectPath
    threshold_policy: ProjectPath = Field(description="thresholds by group, for who applies them knowingly")
    suites_data: ProjectPath = Field(description="the folder of what is put to language models; git tracks it")
    suites_plots: ProjectPath
    report_page: ProjectPath
    card: ProjectPath = Field(description="the folder of the model card and the data sheet")
    model_passed: ProjectPath
    export: ProjectPath
    converted: ProjectPath
    reports: ProjectPath


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


class _UnknownTask(TaskParams):
    """The section `task` when its type is not known: the type is the one fault of it."""

    model_config = ConfigDict(extra="ignore")

    @field_validator("type")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in task_types():
            raise ValueError(f"a task type ({', '.join(task_types())}).{_nearest(name, task_types())}")
        return name


def params_model(task_type: str | None) -> type[Params]:
    """The model of the whole file for one task type: one field a section, each of its stage's own class."""
    fields: dict[str, Any] = {"task": (_UnknownTask, ...)}
    for name in FLOW_SECTIONS:
        section = getattr(importlib.import_module(f"tunewright.{name}"), f"{name.capitalize()}Params")
        fields[name] = (section, section())
    if task_type in task_types():
        fields["task"] = (importlib.import_module(f"tunewright.task_types.{task_type}").TaskParams, ...)
    for stage in stage_names():
        section = section_class(stage)
        if section is not None:
            fields[stage] = (section, ...)
    with warnings.catch_warnings():
        # A stage is called `validate`, as a method of pydantic's first version was; nobody calls that.
        warnings.filterwarnings("ignore", 'Field name "validate"', UserWarning)
        return create_model("Params", __base__=Params, **fields)


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and validate params.yaml.

    Raises
        UserError  one message that lists every fault with its line, key, what was found and what is allowed.
    """
    from tunewright.masking import masked, secret_settings  # which know their own Section by this module

    raw, root = _read(path)
    task = raw.get("task")
    model = params_model(task.get("type") if isinstance(task, dict) else None)
    faults = _duplicates(root)
    params: Params | None = None
    try:
        params = model.model_validate(raw)
    except ValidationError as error:
        for detail in error.errors():
            location = _location(detail["loc"], raw)
            faults.append((_line_of(location, root), _fault(detail, location, model)))
    for location, fault in _metric_faults(raw):
        faults.append((_line_of(location, root), f"{'.'.join(location)}: {fault}"))
    if secret := list(secret_settings(raw)):  # what else is said of such a key can quote it
        faults = [(line, masked(fault)) for line, fault in faults]
        faults += [(_line_of(location, root), f"{_dotted(location)}: {KEEP_OUT}") for location in secret]
    if faults or params is None:
        listed = [f"  line {line}: {fault}" for line, fault in sorted(set(faults))]
        count = "1 fault" if len(listed) == 1 else f"{len(listed)} faults"
        raise UserError(f"{path}: {count}\n" + "\n".join(listed))
    return params


KEEP_OUT = (
    "looks like a secret. Keep it out of params.yaml: it belongs in an environment variable or a block of Prefect's "
    "(docs/watching.md)."
)


def _dotted(location: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")


def _metric_faults(raw: dict[str, Any]) -> Iterator[tuple[tuple[str, str, str], str]]:
    """Limits of `verdict` and `champion` on what is no metric of the task, or on the wrong side of one."""
    task = raw.get("task")
    name = task.get("type") if isinstance(task, dict) else None
    if name not in task_types():
        return
    found = importlib.import_module(f"tunewright.task_types.{name}").Task
    for section, key in (("verdict", "min_metrics"), ("verdict", "max_metrics"), ("champion", "tolerances")):
        above = raw.get(section)
        limits = above.get(key) if isinstance(above, dict) else None
        for metric in limits if isinstance(limits, dict) else ():
            if metric not in found.metric_names:
                near = _nearest(str(metric), found.metric_names) or f" It has {', '.join(found.metric_names)}."
                yield (section, key, metric), f"no metric of {name}.{near}"
            elif key == "min_metrics" and metric in found.lower_is_better:
                yield ("verdict", key, metric), "less of it is better. Put it under verdict.max_metrics."


def _read(path: Path) -> tuple[dict[str, Any], Any]:
    """The file's content, and the same as nodes, which know their lines."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    yaml = YAML(typ="safe", pure=True)
    yaml.allow_duplicate_keys = True  # `_duplicates` lists them, beside all other faults
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text)
        raw = None if root is None else yaml.constructor.construct_document(root)
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
    return raw, root


def _duplicates(node: Any, above: str = "") -> list[tuple[int, str]]:
    """Every key that stands twice in one section, with the line of the second."""
    faults: list[tuple[int, str]] = []
    first: dict[Any, int] = {}
    for position, entry in enumerate(node.value if isinstance(node.value, list) else []):
        if not isinstance(entry, tuple):  # an item of a list
            faults += _duplicates(entry, f"{above}[{position}]")
            continue
        key, value = entry
        dotted = f"{above}.{key.value}".lstrip(".")
        line = key.start_mark.line + 1
        if key.value in first:
            faults.append(
                (line, f"{dotted}: stands a second time; it stands on line {first[key.value]} too. Keep one.")
            )
        first.setdefault(key.value, line)
        faults += _duplicates(value, dotted)
    return faults


def _location(parts: tuple[int | str, ...], raw: Any) -> tuple[int | str, ...]:
    """Where a fault stands in the file. pydantic's own place also names validators and alternatives of a type."""
    location: list[int | str] = []
    node: Any = raw
    for position, part in enumerate(parts):
        is_last = position == len(parts) - 1
        if isinstance(node, dict) and (part in node or (is_last and part != "[key]")):
            node = node.get(part)
        elif isinstance(node, list) and isinstance(part, int):
            node = node[part]
        else:
            continue
        location.append(part)
    return tuple(location)


def _line_of(location: tuple[int | str, ...], node: Any) -> int:
    """The line of a key, counted from 1, or of the nearest section above it that stands in the file."""
    line = 1
    for part in location:
        if isinstance(part, int):
            node = node.value[part]
            line = node.start_mark.line + 1
            continue
        entry = next((entry for entry in node.value if entry[0].value == part), None)
        if entry is None:
            break
        line, node = entry[0].start_mark.line + 1, entry[1]
    return line


def _fault(detail: ErrorDetails, location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    dotted = _dotted(location)
    above = location[:-1]
    kind = detail["type"]
    if kind == "extra_forbidden":
        key = str(location[-1])
        ours = PEER_NAMES.get(key, key)
        known = _keys(model, above)
        if ours in known:
            return f"{dotted}: unknown key; here it is called `{ours}`."
        home = next((name for name in model.model_fields if ours in _keys(model, (name,))), None)
        if home is not None:
            return f"{dotted}: unknown key; it belongs in its section, as `{home}.{ours}`."
        return f"{dotted}: unknown key.{_nearest(key, known) or ' Allowed here: ' + ', '.join(sorted(known)) + '.'}"
    expected = allowed(model, location)
    if kind == "missing":
        return f"{dotted}: missing; expected {expected}. Add it; docs/params.md says what each key means."
    if kind in ("value_error", "assertion_error"):
        problem = detail["msg"].partition(", ")[2]
        if isinstance(detail["input"], dict):  # of a whole section: what was found is the section
            return f"{dotted}: expected {problem}."
        expected = problem
    near = _nearest(str(detail["input"]), expected.split(", ")) if kind == "literal_error" else ""
    return (
        f"{dotted}: found {_shown(detail['input'])}; expected {expected}{'' if expected.endswith('?') else '.'}{near}"
    )


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return f"a section with keys {', '.join(map(str, list(value)[:6]))}" if value else "an empty section"
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _nearest(key: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f" Did you mean `{close[0]}`?" if close else ""


# One alternative of a key's type, and what bounds it: (int, (Ge(0),)).
_Option = tuple[Any, tuple[Any, ...]]

_WORDS = {bool: "true or false", int: "integer", float: "number", str: "text", NoneType: "null", Any: "any value"}
_BOUNDS = {
    "gt": "> {}",
    "ge": "≥ {}",
    "lt": "< {}",
    "le": "≤ {}",
    "multiple_of": "a multiple of {}",
    "min_length": "of length ≥ {}",
    "max_length": "of length ≤ {}",
    "pattern": "that matches {}",
}


def allowed(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """What the key at that place may hold, in words: `number ≥ 0 and < 1, or null`.

    The messages and docs/params.md share it.
    """
    return ", or ".join(dict.fromkeys(_in_words(option) for option in _options_at(model, location)))


def _in_words(option: _Option) -> str:
    kind, metadata = option
    origin: Any = get_origin(kind) or kind
    bounds = " and ".join(
        text.format(int(value) if isinstance(value, float) and value.is_integer() else value)
        for extra in metadata
        for name, text in _BOUNDS.items()
        if (value := getattr(extra, name, None)) is not None
    )
    items = []
    if origin is Literal:
        words = ", ".join("null" if value is None else str(value) for value in get_args(kind))
    elif origin in (list, dict):
        words = "list" if origin is list else "section"
        items = [", or ".join(_in_words(inner) for inner in _options(argument, ())) for argument in get_args(kind)]
    elif isinstance(origin, type) and issubclass(origin, BaseModel):
        words = f"section with {', '.join(origin.model_fields)}"
    else:
        words = _WORDS.get(origin, str(origin))
    return words + (f" {bounds}" if bounds else "") + (f" of {': '.join(items)}" if items else "")


def _options(annotation: Any, metadata: tuple[Any, ...]) -> Iterator[_Option]:
    """The alternatives of a type hint, with `Annotated` and unions taken apart."""
    if get_origin(annotation) is Annotated:
        inner, *extras = get_args(annotation)
        found = [bound for extra in extras for bound in (extra.metadata if isinstance(extra, FieldInfo) else [extra])]
        yield from _options(inner, (*metadata, *found))
    elif get_origin(annotation) in (Union, UnionType):
        for argument in get_args(annotation):
            yield from _options(argument, () if argument is NoneType else metadata)
    else:
        yield annotation, metadata


def _options_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[_Option]:
    options: list[_Option] = [(model, ())]
    for part in location:
        options = [inner for option in options for inner in _inside(option[0], part)]
    return options


def _inside(kind: Any, part: int | str) -> Iterator[_Option]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        if part in kind.model_fields:
            field = kind.model_fields[str(part)]
            yield from _options(field.annotation, tuple(field.metadata))
    elif get_origin(kind) is list and isinstance(part, int):
        yield from _options(get_args(kind)[0], ())
    elif get_origin(kind) is dict:
        yield from _options(get_args(kind)[1], ())


def section_at(model: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The class of the section at that place; None where no section stands."""
    kinds = [kind for kind, _ in _options_at(model, location)]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    found = section_at(model, location)
    return list(found.model_fields) if found else []
