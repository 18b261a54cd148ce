"""Export the tuned model: safetensors and ONNX, each proven in a fresh process before it replaces the last export.

Reads   paths.tuned_model   the model to export
        paths.control       control.json, which goes with it
        paths.model_passed  the model gate's pass: nothing is exported that it has not passed
        paths.tokens        test rows, for the logits and for the metric
        paths.prepared      their texts and labels
        evaluate_report     the metric that the tuned model reached on test, and by which tokens
        paths.threshold_policy  carried beside the model where there is one
        paths.card          the model card and the data sheet, which go with it
Writes  paths.export        what plain Transformers opens, model.onnx, README.md, DATA_SHEET.md, card.json,
                            control.json, whose figures stand in config.json too, VERIFIED: what was compared of
                            each form, and MANIFEST.json: SHA-256 and size of each file, and the chain back so far
                            as it is seen here; for a model that writes text a generation_config.json as it was
                            evaluated, with its stop strings where they stop nobody from writing
Report  paths.reports/export.json: the files; of each form how far its logits are from the tuned model's, and the
        metric on test recomputed from its files
"""

from __future__ import annotations

import re
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field

from tunewright.compute import open_tuned, read_tokens
from tunewright.control import CONTROL_FILE, Control, has_probabilities, read_control
from tunewright.errors import UserError
from tunewright.exported import ONNX, Exported, Form, is_of
from tunewright.files import atomic_folder, read_json, read_parquet, sha256_tree, write_json
from tunewright.gates import require_pass
from tunewright.generation import GenerationParams, exported_config
from tunewright.onnx_files import save
from tunewright.params import Section
from tunewright.parity import Parity, compared_batches, parity, spread_over_lengths
from tunewright.proofs import VERIFIED, AsModel, HashedFile, OnTest, Proven, close, hashed_file, hashed_files
from tunewright.report import Report
from tunewright.stage import Dep, Key, Out, Paths, run_stage
from tunewright.task import TaskType
from tunewright.tokenizer import open_tokenizer

if TYPE_CHECKING:
    import numpy as np

ONNX_KINDS = ("ForSequenceClassification", "ForTokenClassification", "ForMaskedLM")
"""How the classes of Transformers end that one pass turns from token ids into logits."""
MANIFEST = "MANIFEST.json"
OF_THE_ORIGIN = re.compile(
    r"(fetch|init)_model\.(model_name_or_path|model_revision|license|sha256)|ingest\.sources\.\d+\.(name|license|sha256)"
)
"""The facts of the card that say what the base model and the raw data were."""


class ExportParams(Section):
    """Which forms, and how closely they must agree with the tuned model."""

    onnx: bool = Field(description="write model.onnx beside the safetensors")
    opset_version: int = Field(ge=18, le=23, description="of ONNX; 18 is what PyTorch writes without converting")
    parity_rows: int = Field(ge=1, le=10_000, description="test rows whose logits are compared")
    parity_atol: float = Field(gt=0.0, le=0.1, description="the largest difference of a logit that is let through")


class ExportPaths(Paths):
    tuned_model: Dep
    control: Dep
    model_passed: Dep
    tokens: Dep
    prepared: Dep
    evaluate_report: Dep
    card: Dep
    threshold_policy: Dep
    export: Out


class ProvenForm(Proven):
    """What was compared of a form in a fresh process, and found good."""

    exported: float
    """The metric recomputed from the exported files."""


class Verified(BaseModel):
    """Each form of the export, by its name; of the tuned model with this SHA-256."""

    model_sha256: str
    forms: dict[Form, ProvenForm]


class ExportReport(Report):
    """Every exported file, and what was found of each form."""

    model_sha256: str
    opset_version: int | None
    files: dict[str, HashedFile]
    forms: dict[Form, ProvenForm]


def run(
    paths: ExportPaths,
    params: ExportParams,
    task: TaskType,
    seed: Annotated[int, Key("seed")],
    num_threads: Annotated[int, Key("num_threads")],
    evaluate: Annotated[Any, Key("evaluate")],
) -> ExportReport:
    """Export, prove each form, and only then replace the last export.

    Raises
        GateClosed  when the model gate has not passed this very model with this very control, card and policy.
        UserError   when model or tokens are not those that were evaluated, when ONNX is asked for of a kind of model
                    that has none here, when an exported form's logits differ from the tuned model's by more than
                    parity_atol, or when its metric on test is another one than was evaluated.
    """
    model_sha256 = require_pass(paths.model_passed, "model", paths.tuned_model)
    require_pass(paths.model_passed, "control", paths.control)
    require_pass(paths.model_passed, "card", paths.card)
    require_pass(paths.model_passed, "threshold_policy", paths.threshold_policy)
    evaluated = read_json(paths.evaluate_report)
    tokens_sha256 = sha256_tree(paths.tokens)
    _check_evaluated(paths, paths.tuned_model, model_sha256, evaluated["model_sha256"])
    _check_evaluated(paths, paths.tokens, tokens_sha256, evaluated["tokens_sha256"])

    import torch

    torch.set_num_threads(num_threads)
    model = open_tuned(task, paths.tuned_model).eval()
    if params.onnx:
        _check_has_onnx(model)
    rows = spread_over_lengths(read_tokens(paths.tokens / "test.arrow"), params.parity_rows)
    # The tuned model's logits come first: the exporter can leave a model in train mode.
    batches = compared_batches(model, task, rows)
    test = read_parquet(paths.prepared / "test.parquet")
    on_test = OnTest(task, paths.tuned_model, test, paths.tokens, evaluate, seed)
    tuned = on_test.evaluated(evaluated)

    with atomic_folder(paths.export) as folder, ExitStack() as processes:
        if read_json(paths.threshold_policy):  # beside the model: nothing here applies it
            shutil.copyfile(paths.threshold_policy, folder / paths.threshold_policy.name)
        shutil.copytree(paths.tuned_model, folder, copy_function=shutil.copyfile, dirs_exist_ok=True)
        shutil.copytree(paths.card, folder, copy_function=shutil.copyfile, dirs_exist_ok=True)
        shutil.copyfile(paths.control, folder / CONTROL_FILE)
        if has_probabilities(task):
            _tell_in_config(read_control(paths.control), folder / "config.json")
        if task.generates:
            _write_generation_config(model, task, evaluate.generation or GenerationParams(), folder)
        opened: dict[Form, Exported] = {}
        # It imports and loads while this process is busy with the ONNX export.
        opened["safetensors"] = processes.enter_context(Exported("safetensors", folder, num_threads))
        if params.onnx:
            write_onnx(model, batches[0].inputs, params.opset_version, folder / ONNX)
            opened["onnx"] = processes.enter_context(Exported("onnx", folder, num_threads))
        files = hashed_files(folder)
        forms: dict[Form, ProvenForm] = {}
        for form, process in opened.items():
            apart = parity(process, batches)
            _check_logits(form, apart, params.parity_atol)
            found = on_test.value(on_test.predictions(AsModel(process, model)))
            if not (close(found, tuned) or on_test.only_ties_differ(process, model, tuned)):
                raise _another_metric(form, on_test.metric, found, tuned, paths.evaluate_report)
            forms[form] = ProvenForm(
                parity_rows=len(rows),
                shapes=[batch.shape for batch in batches],
                max_abs_difference=apart.max_abs_difference,
                test_rows=test.num_rows,
                metric=on_test.metric,
                tuned=tuned,
                exported=found,
                files={name: file for name, file in files.items() if is_of(form, name)},
            )
        verified = Verified(model_sha256=model_sha256, forms=forms)
        write_json(folder / VERIFIED, verified.model_dump(mode="json"))
        report = ExportReport(
            model_sha256=model_sha256,
            opset_version=params.opset_version if params.onnx else None,
            files=files | {VERIFIED: hashed_file(folder / VERIFIED)},
            forms=forms,
        )
        manifest = report.model_dump(mode="json", include={"files", "model_sha256", "opset_version"})
        manifest |= {"passed": read_json(paths.model_passed), "chain": _chain(paths, model_sha256, tokens_sha256)}
        write_json(folder / MANIFEST, manifest)
    return report


def _check_evaluated(paths: ExportPaths, path: Path, found: str, expected: str) -> None:
    """Whether the metric that is to be found again was measured with these very bytes."""
    if found != expected:
        raise UserError(
            f"{path}: SHA-256 {found}; expected {expected}, with which the model was evaluated "
            f"({paths.evaluate_report}). The last export is kept. Run `dvc repro`; where it finds nothing to do, "
            "`tunewright verify` names what was altered behind DVC's back."
        )


def _chain(paths: ExportPaths, model_sha256: str, tokens_sha256: str) -> dict[str, Any]:
    """What this was made of: the weights and tokens by their hashes; the base model and the raw data as the card has
    them from reports; and those reports by theirs. `tunewright publish` adds what dvc.lock knows."""
    facts = read_json(paths.card / "card.json")["facts"]
    return {
        "weights": model_sha256,
        "tokens": tokens_sha256,
        "origin": {name: fact["value"] for name, fact in facts.items() if OF_THE_ORIGIN.fullmatch(name)},
        "reports": {fact["file"]: fact["sha256"] for fact in facts.values()},
    }


def _tell_in_config(control: Control, path: Path) -> None:
    """What whoever opens the model with Transformers alone finds as `model.config.calibration_temperature` and
    `model.config.abstain_below`: the logits themselves are the model's own. An adapter alone has no config.json."""
    if path.is_file():
        told = {"calibration_temperature": control.temperature, "abstain_below": control.abstain_below}
        write_json(path, read_json(path) | told)


def _write_generation_config(model: Any, task: TaskType, generation: GenerationParams, folder: Path) -> None:
    """What `generate` then does without being told: the settings that the model was evaluated with."""
    from transformers import GenerationConfig

    tokenizer = open_tokenizer(folder)
    settings = exported_config(generation, tokenizer, model, task.end_of_answer(tokenizer))
    GenerationConfig(**settings).save_pretrained(folder)


def _check_has_onnx(model: Any) -> None:
    """Refuse what `_write_onnx` was not made for, before hours of it."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    kind = type(plain).__name__
    if not kind.endswith(ONNX_KINDS):
        raise UserError(
            f"export.onnx: the ONNX form of a {kind} is not built here: of an encoder's classifier alone. "
            "Set export.onnx: false; the safetensors are exported and compared without it. Of a model that writes text "
            "convert.formats: [onnx] makes it."
        )


def write_onnx(model: Any, example: dict[str, np.ndarray], opset_version: int, path: Path) -> None:
    """Write model.onnx with dynamic batch and length, its inputs and its output named as Transformers names them."""
    import torch

    # Two rows of at least two tokens: PyTorch takes a size of one for a constant.
    inputs = {
        name: torch.zeros((2, max(2, values.shape[1])), dtype=torch.int64) + 1 for name, values in example.items()
    }
    free = {name: {0: "batch", 1: "length"} for name in inputs}
    save(model, inputs, list(inputs), ["logits"], free, opset_version, path)


def _check_logits(form: str, found: Parity, atol: float) -> None:
    if found.max_abs_difference is None or found.max_abs_difference > atol:
        differs = "not finite" if found.max_abs_difference is None else f"{found.max_abs_difference:.3g} away"
        raise UserError(
            f"export: the logits of the exported {form} are {differs} from the tuned model's, in a batch of "
            f"{found.shape[0]} rows of {found.shape[1]} tokens; expected at most export.parity_atol: {atol:g}. "
            "The last export is kept. Try another export.opset_version, or set export.onnx: false."
        )


def _another_metric(form: str, metric: str, found: float, tuned: float, evaluate_report: Path) -> UserError:
    what = (
        "Run `dvc repro`, so that the model is evaluated by what is there now"
        if form == "safetensors"
        else "Try another export.opset_version, or set export.onnx: false"
    )
    return UserError(
        f"export: the exported {form} has {metric} {found:.6g} on test; expected {tuned:.6g}, as "
        f"{evaluate_report} says of the tuned model. The last export is kept. {what}."
    )


if __name__ == "__main__":
    run_stage(run)
