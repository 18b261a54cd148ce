"""Convert the exported model to further forms, each proven in a fresh process of its own runtime.

Reads   paths.export     the exported model: what the model gate has passed, and nothing else
        paths.tokens     test rows, for the logits and for the metric
        paths.prepared   their texts and labels
        evaluate_report  the metric that the tuned model reached on test
Writes  paths.converted  one folder a form, with the tokenizer and VERIFIED: what was compared, SHA-256 of each file;
                         MANIFEST.json of all of them
Report  paths.reports/convert.json: of each form its size, how far its logits are, and the metric on test recomputed
        from the converted files
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, Field

from tunewright import formats
from tunewright.compute import open_tuned, read_tokens, set_up
from tunewright.control import CONTROL_FILE
from tunewright.errors import UserError
from tunewright.evaluation import check_finite, paired
from tunewright.files import atomic_folder, read_json, read_parquet, sha256_file, write_json
from tunewright.params import Section
from tunewright.parity import Parity, compared_batches, compared_part, spread_over_lengths
from tunewright.predictions import with_rows
from tunewright.report import Report
from tunewright.runtime import Runtime, python_of, write
from tunewright.stage import Dep, Key, Out, Paths, run_stage
from tunewright.statistics import Estimate
from tunewright.task import Predicting, TaskType
from tunewright.tokenizer import open_tokenizer, token_table

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    Batch = tuple[dict[str, np.ndarray], np.ndarray]

MANIFEST = "MANIFEST.json"
VERIFIED = "VERIFIED"
GO_ALONG = ("README.md", "config.json", CONTROL_FILE, "tokenizer.json", "tokenizer_config.json")
"""What a form needs beside its weights: the card, the labels, how its outputs are read, and the tokenizer."""
ROUNDING = 1e-4
"""How much of a metric the last digits of the logits may change, of itself where it is above 1."""
MAX_ACCENTED = 16
FROM_ONNX = "onnx_int8"


def _known(names: list[str]) -> list[str]:
    if unknown := sorted(set(names) - set(formats.names())):
        raise ValueError(f"any of {', '.join(formats.names())}; not {', '.join(unknown)}")
    if len(set(names)) < len(names):
        raise ValueError("each format once")
    return names


class ConvertParams(Section):
    """Which forms, and how closely they must agree with the tuned model."""

    formats: Annotated[list[str], AfterValidator(_known)] = Field(
        description="onnx_int8, tensorflow (by `make tensorflow`), litert (by `make litert`); none: nothing is made"
    )
    parity_rows: int = Field(ge=1, le=10_000, description="test rows whose logits are compared")
    parity_atol: float = Field(
        gt=0.0,
        le=0.1,
        description="the largest difference of a logit that is let through, of a form that rounds nothing",
    )
    max_metric_loss: float = Field(
        ge=0.0,
        le=1.0,
        description="how much worse than the tuned model's the deciding metric of a quantized form may be",
    )


class ConvertPaths(Paths):
    export: Dep
    tokens: Dep
    prepared: Dep
    evaluate_report: Dep
    converted: Out


class ConvertedFile(BaseModel):
    """One file of a form; size in bytes."""

    sha256: str
    size: int


class Verified(BaseModel):
    """What was compared in a fresh process, and found good."""

    format: str
    model_sha256: str
    """Of the tuned model that was exported."""
    quantized: bool
    parity_rows: int
    shapes: list[tuple[int, int]]
    """Rows and tokens of each batch whose logits were compared."""
    max_abs_difference: float
    """Of a logit from the tuned model's."""
    test_rows: int
    metric: str
    tuned: float
    """The deciding metric on test of the exported model in PyTorch: that of evaluate.json."""
    converted: float
    """The same recomputed from the converted files."""
    change: Estimate
    """How much better the converted model is, paired by row: negative is a loss."""
    files: dict[str, ConvertedFile]


class ConvertReport(Report):
    """Every form by its name; none where `convert.formats` names none."""

    model_sha256: str | None
    formats: dict[str, Verified]


def check(params: ConvertParams, export: Annotated[Any, Key("export")]) -> list[str]:
    """The environments that are missing, and a form whose own source the export leaves out; each fault in words."""
    faults = []
    if FROM_ONNX in params.formats and not export.onnx:
        faults.append(f"convert.formats: {FROM_ONNX} is made of the ONNX form. Set export.onnx: true, or take it out.")
    for name in params.formats:
        try:
            python_of(name)
        except UserError as error:
            faults.append(str(error))
    return faults


def run(
    paths: ConvertPaths,
    params: ConvertParams,
    task: TaskType,
    seed: Annotated[int, Key("seed")],
    num_threads: Annotated[int, Key("num_threads")],
    max_length: Annotated[int, Key("tokenize.max_length")],
    evaluate: Annotated[Any, Key("evaluate")],
) -> ConvertReport:
    """Write every form, prove each, and only then replace the last ones.

    Raises
        UserError  when a form's environment is missing, when the model has no such form, when the export is not the
                   model that was evaluated, or when a form differs from it by more than params allow.
    """
    if not params.formats:
        with atomic_folder(paths.converted) as folder:
            write_json(folder / MANIFEST, {"model_sha256": None, "formats": {}})
        return ConvertReport(applies=False, model_sha256=None, formats={})
    manifest = _read_manifest(paths.export)
    evaluated = read_json(paths.evaluate_report)
    if evaluated["model_sha256"] != manifest["model_sha256"]:
        raise UserError(
            f"{paths.export}: is of another model (SHA-256 {manifest['model_sha256'][:12]}…) than the one that was "
            f"evaluated ({evaluated['model_sha256'][:12]}…). Run `dvc repro`."
        )
    for name in params.formats:
        python_of(name)
        if refusal := formats.load(name).refusal(formats.settings(paths.export), list(manifest["files"])):
            raise UserError(f"convert.formats: {name}: {refusal}. Take {name} out of convert.formats.")

    set_up(num_threads, seed)
    test = read_parquet(paths.prepared / "test.parquet")
    tokens = read_tokens(paths.tokens / "test.arrow")
    _check_tokenizer(task, paths.export, test, tokens, max_length)
    model = open_tuned(task, paths.export).eval()
    rows = spread_over_lengths(tokens, params.parity_rows)
    accented = _accented(test, tokens)
    batches = compared_batches(model, task, rows, [accented] if accented else [])
    how = Predicting(evaluate.per_device_eval_batch_size, seed, None, evaluate.max_tokens_per_batch)

    def predicted(by: Any) -> pa.Table:
        found = task.predict(by, open_tokenizer(paths.export), test, tokens, how)
        check_finite(found, paths.export)
        return with_rows(found, test, "test")

    metric = evaluated["metric"]
    reference = predicted(model)
    tuned = _value(task, reference, metric, evaluate)
    written = evaluated["splits"]["test"]["metrics"][metric]["value"]
    if not _close(tuned, written):
        raise UserError(
            f"{paths.export}: gives {metric} {tuned:.6g} on test, and {paths.evaluate_report} says {written:.6g}. "
            "Run `dvc repro`."
        )

    verified: dict[str, Verified] = {}
    with atomic_folder(paths.converted) as folder:
        for name in params.formats:
            own = folder / name
            own.mkdir()
            write(name, paths.export, own, max_length)
            for file in GO_ALONG:
                if (paths.export / file).is_file():
                    shutil.copyfile(paths.export / file, own / file)
            with Runtime(name, own, num_threads) as runtime:
                parity = _parity(runtime, batches)
                _check_logits(name, parity, params)
                table = predicted(_Converted(runtime, model.config))
            change = paired(task, table, reference, [metric], evaluate, seed)[metric]
            found = _value(task, table, metric, evaluate)
            _check_metric(name, metric, tuned, found, change, params)
            verified[name] = Verified(
                format=name,
                model_sha256=manifest["model_sha256"],
                quantized=formats.load(name).QUANTIZED,
                parity_rows=len(rows) + len(accented),
                shapes=[inputs["input_ids"].shape for inputs, _ in batches],
                max_abs_difference=parity.max_abs_difference,
                test_rows=test.num_rows,
                metric=metric,
                tuned=tuned,
                converted=found,
                change=change,
                files=_files(own),
            )
            write_json(own / VERIFIED, verified[name].model_dump(mode="json"))
        every = {name: {file: one.model_dump() for file, one in _files(folder / name).items()} for name in verified}
        write_json(folder / MANIFEST, {"model_sha256": manifest["model_sha256"], "formats": every})
    return ConvertReport(model_sha256=manifest["model_sha256"], formats=verified)


def _read_manifest(export: Path) -> dict[str, Any]:
    """The export's manifest, whose files are all there with the bytes that were proven."""
    manifest: dict[str, Any] = read_json(export / MANIFEST)
    for name, entry in manifest["files"].items():
        if not (export / name).is_file() or sha256_file(export / name) != entry["sha256"]:
            raise UserError(
                f"{export / name}: is not the file that was proven when the model was exported (its SHA-256 is not "
                f"that of {MANIFEST}). Run `dvc repro export`."
            )
    return manifest


def _check_tokenizer(task: TaskType, export: Path, test: pa.Table, tokens: pa.Table, max_length: int) -> None:
    """Whether the tokenizer that goes along makes of the texts of test what the model was evaluated on."""
    made = token_table(task, test, open_tokenizer(export), max_length).table
    if made["input_ids"].to_pylist() != tokens["input_ids"].to_pylist():
        raise UserError(
            f"{export}: its tokenizer makes other tokens of the texts of test than the model was evaluated on. "
            "Run `dvc repro`."
        )


def _accented(test: pa.Table, tokens: pa.Table) -> list[dict[str, Any]]:
    """The first rows whose text holds a letter beyond ASCII: what a form's own vocabulary would get wrong first."""
    ids = {
        row_id
        for row_id, text in zip(test["row_id"].to_pylist(), test["text"].to_pylist(), strict=True)
        if any(letter > "\x7f" and letter.isalpha() for letter in text)
    }
    places = [at for at, row_id in enumerate(tokens["row_id"].to_pylist()) if row_id in ids]
    rows: list[dict[str, Any]] = tokens.drop_columns(["row_id"]).take(places[:MAX_ACCENTED]).to_pylist()
    return rows


class _Converted:
    """A converted model in its own process, where `task.predict` expects a model of PyTorch."""

    training = False
    device = "cpu"

    def __init__(self, runtime: Runtime, config: Any) -> None:
        self._runtime = runtime
        self.config = config

    def eval(self) -> None:
        """As it always is."""

    def train(self, mode: bool) -> None:
        """It can't."""

    def __call__(self, **inputs: Any) -> Any:
        import torch

        logits = self._runtime.logits({name: values.numpy() for name, values in inputs.items()})
        return SimpleNamespace(logits=torch.from_numpy(logits))


def _parity(runtime: Runtime, batches: list[Batch]) -> Parity:
    """The largest difference of a logit, and the batch that showed it. What a form gives for padding is nobody's."""
    import numpy as np

    worst, shape = -1.0, (0, 0)
    for inputs, expected in batches:
        rows, tokens = inputs["input_ids"].shape
        apart = np.abs(compared_part(runtime.logits(inputs)) - expected)
        if apart.ndim == 3 and apart.shape[1] == tokens:
            apart = apart[inputs["attention_mask"].astype(bool)]
        difference = float(apart.max())
        if not math.isfinite(difference):
            return Parity(max_abs_difference=None, shape=(rows, tokens))
        if difference > worst:
            worst, shape = difference, (rows, tokens)
    return Parity(max_abs_difference=worst, shape=shape)


def _check_logits(name: str, found: Parity, params: ConvertParams) -> None:
    where = f"in a batch of {found.shape[0]} rows of {found.shape[1]} tokens"
    kept = "The last converted models are kept"
    if found.max_abs_difference is None:
        raise UserError(f"convert: the logits of {name} are not finite, {where}. {kept}.")
    if not formats.load(name).QUANTIZED and found.max_abs_difference > params.parity_atol:
        raise UserError(
            f"convert: the logits of {name} are {found.max_abs_difference:.3g} away from the tuned model's, {where}; "
            f"expected at most convert.parity_atol: {params.parity_atol:g}. {kept}. Take {name} out of convert.formats."
        )


def _check_metric(name: str, metric: str, tuned: float, found: float, change: Estimate, params: ConvertParams) -> None:
    kept = f"The last converted models are kept. Take {name} out of convert.formats"
    if formats.load(name).QUANTIZED:
        if -change.value > params.max_metric_loss:
            raise UserError(
                f"convert: {name} has {metric} {found:.4f} on test, and the tuned model {tuned:.4f}: a loss of "
                f"{-change.value:.4f} ({-change.high:.4f} to {-change.low:.4f}); expected at most "
                f"convert.max_metric_loss: {params.max_metric_loss:g}. {kept}, or allow a larger loss."
            )
    elif not _close(found, tuned):
        raise UserError(
            f"convert: {name} has {metric} {found:.6g} on test, and the tuned model {tuned:.6g}; expected the same. "
            f"{kept}."
        )


def _value(task: TaskType, predictions: pa.Table, metric: str, evaluate: Any) -> float:
    import numpy as np

    statistic = task.statistics(predictions, evaluate.calibration_bins)[metric]
    return float(statistic(np.ones((1, predictions.num_rows)))[0])


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=ROUNDING, abs_tol=ROUNDING)


def _files(folder: Path) -> dict[str, ConvertedFile]:
    return {
        found.relative_to(folder).as_posix(): ConvertedFile(sha256=sha256_file(found), size=found.stat().st_size)
        for found in sorted(folder.rglob("*"))
        if found.is_file()
    }


if __name__ == "__main__":
    run_stage(run)
