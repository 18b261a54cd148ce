"""Convert the exported model to further forms, each proven in a fresh process of its own runtime.

Reads   paths.export     the exported model: what the model gate has passed, and nothing else
        paths.tokens     test rows, for the logits and for the metric
        paths.prepared   their texts and labels
Writes  paths.converted  one folder a form, with the tokenizer and VERIFIED: what was compared, SHA-256 of each file;
                         MANIFEST.json of all of them
Report  paths.reports/convert.json: of each form its size, how far its logits are, and the metric on test recomputed
        from the converted files
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import AfterValidator, BaseModel, Field

from tunewright import formats
from tunewright.compute import decoder_inputs, open_tuned, read_tokens, set_up
from tunewright.control import CONTROL_FILE
from tunewright.errors import UserError
from tunewright.evaluation import paired
from tunewright.files import atomic_folder, read_json, read_parquet, sha256_file, write_json
from tunewright.generation import GenerationParams, generation_config, model_ends, room
from tunewright.losses import IGNORED
from tunewright.params import Section
from tunewright.parity import Parity, compared_batches, parity, spread_over_lengths
from tunewright.proofs import VERIFIED, AsModel, OnTest, Proven, close, hashed_files, writes
from tunewright.report import Report
from tunewright.runtime import Runtime, python_of, write
from tunewright.stage import Dep, Key, Out, Paths, run_stage
from tunewright.statistics import Estimate
from tunewright.task import TaskType
from tunewright.tokenizer import open_tokenizer, token_table

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

MANIFEST = "MANIFEST.json"
GO_ALONG = (
    "README.md",
    "config.json",
    "generation_config.json",
    "chat_template.jinja",
    CONTROL_FILE,
    "tokenizer.json",
    "tokenizer_config.json",
)
"""What a form needs beside its weights: the card, the labels, how its outputs are read or its texts are written, and
the tokenizer."""
CONTINUED_ROWS, NEW_TOKENS = 8, 32
"""Rows that are continued, and by how many tokens at most, to see that a form writes what the tuned model writes."""
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
        description="onnx (of a model that writes), onnx_int8, tensorflow (by `make tensorflow`), litert (by "
        "`make litert`), gguf and gguf_q8_0 (by `make gguf`); none: nothing is made"
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
    converted: Out


class Continuation(BaseModel):
    """What a form wrote after test rows, the likeliest token each time, beside what the tuned model wrote."""

    rows: int
    tokens: int
    """That the tuned model wrote."""
    same_rows: int
    """Of which every token is the same."""
    same_tokens: int
    """Before the first that differs, over all rows."""
    tied_rows: int
    """Whose first other token has a logit within parity_atol of the tuned model's largest: either could be written."""


class Verified(Proven):
    """What was compared in a fresh process, and found good."""

    format: str
    model_sha256: str
    """Of the tuned model that was exported."""
    quantized: bool
    converted: float
    """The metric recomputed from the converted files."""
    change: Estimate
    """How much better the converted model is, paired by row: negative is a loss."""
    continuation: Continuation | None
    """Of a model that writes text."""
    texts_tokenized: int | None
    """Texts of test of which the form's own tokenizer made the tokens that tokenizer.json makes; None: it has none."""


class ConvertReport(Report):
    """Every form by its name; none where `convert.formats` names none."""

    model_sha256: str | None
    formats: dict[str, Verified]


def check(params: ConvertParams, task: TaskType, export: Annotated[Any, Key("export")]) -> list[str]:
    """The environments that are missing, and a form whose own source the export leaves out; each fault in words."""
    faults = []
    if FROM_ONNX in params.formats and not export.onnx and not writes(task):
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
    on_test = OnTest(task, paths.export, test, paths.tokens, evaluate, seed)
    reference = on_test.predictions(model)
    tuned = on_test.value(reference)
    # What `export` has proven of these very bytes: that they are the model that was evaluated.
    proven = read_json(paths.export / VERIFIED)["forms"]["safetensors"]["exported"]
    if not close(tuned, proven):
        raise UserError(
            f"{paths.export}: gives {on_test.metric} {tuned:.6g} on test, and its {VERIFIED} says {proven:.6g}. "
            "Run `dvc repro`."
        )

    prompts = _prompts(model, task, paths.export, tokens, evaluate.generation) if writes(task) else []
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
                texts = _check_own_tokenizer(runtime, paths.export, tokens)
                apart = parity(runtime, batches)
                _check_logits(name, apart, params)
                continuation = _continued(runtime, model, prompts, params) if writes(task) else None
                table = on_test.predictions(AsModel(runtime, model))
                found = on_test.value(table)
                change = paired(task, table, reference, [on_test.metric], evaluate, seed)[on_test.metric]
                if formats.load(name).QUANTIZED:
                    _check_loss(name, on_test.metric, tuned, found, change, params)
                elif not (close(found, tuned) or on_test.only_ties_differ(runtime, model, tuned)):
                    raise UserError(
                        f"convert: {name} has {on_test.metric} {found:.6g} on test, and the tuned model {tuned:.6g}; "
                        f"expected the same. The last converted models are kept. Take {name} out of convert.formats."
                    )
            verified[name] = Verified(
                format=name,
                model_sha256=manifest["model_sha256"],
                quantized=formats.load(name).QUANTIZED,
                parity_rows=len(rows) + len(accented),
                shapes=[batch.shape for batch in batches],
                max_abs_difference=apart.max_abs_difference,
                test_rows=test.num_rows,
                metric=on_test.metric,
                tuned=tuned,
                converted=found,
                change=change,
                continuation=continuation,
                texts_tokenized=texts,
                files=hashed_files(own),
            )
            write_json(own / VERIFIED, verified[name].model_dump(mode="json"))
        every = {
            name: {file: one.model_dump() for file, one in hashed_files(folder / name).items()} for name in verified
        }
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


def _check_own_tokenizer(runtime: Runtime, export: Path, tokens: pa.Table) -> int | None:
    """Whether a form that has a tokenizer of its own makes of the texts of test the tokens that tokenizer.json makes:
    with special tokens read as such, and as the letters that they are spelt with. A text is what a row's tokens spell,
    in a chat between those of its template.

    Raises
        UserError  naming the first place that differs.
    """
    if not hasattr(formats.load(runtime.name), "tokenized"):
        return None
    backend = open_tokenizer(export).backend
    backend.no_truncation()
    backend.no_padding()
    texts = list(dict.fromkeys(backend.decode_batch(tokens["input_ids"].to_pylist(), skip_special_tokens=False)))
    for parse_special in (True, False):
        backend.encode_special_tokens = not parse_special
        for text, expected in zip(texts, backend.encode_batch(texts), strict=True):
            found = runtime.tokens(text, parse_special)
            if found != expected.ids:
                same = _same(found, expected.ids)
                raise UserError(
                    f"convert: {runtime.name} makes other tokens of a text of test than tokenizer.json does: "
                    f"{found[same : same + 3]} in place of {expected.ids[same : same + 3]} behind {same} that are the "
                    f"same, of {text[:60]!r}. The last converted models are kept. Take {runtime.name} out of "
                    "convert.formats."
                )
    return len(texts)


def _accented(test: pa.Table, tokens: pa.Table) -> list[dict[str, Any]]:
    """The first rows whose text holds a letter beyond ASCII: what a form's own vocabulary would get wrong first."""
    ids = {
        row_id
        for row_id, text in zip(test["row_id"].to_pylist(), test["text"].to_pylist(), strict=True)
        if any(letter > "\x7f" and letter.isalpha() for letter in text)
    }
    places = [at for at, row_id in enumerate(tokens["row_id"].to_pylist()) if row_id in ids]
    if not places:  # Arrow knows no type of an empty list
        return []
    rows: list[dict[str, Any]] = tokens.drop_columns(["row_id"]).take(places[:MAX_ACCENTED]).to_pylist()
    return rows


class _Prompt(NamedTuple):
    """One row as a model is asked to go on with it, see `tunewright.formats`; `written`: what the tuned model wrote."""

    inputs: dict[str, np.ndarray]
    max_new_tokens: int
    ends: list[int]
    written: list[int]


def _prompts(
    model: Any, task: TaskType, export: Path, tokens: pa.Table, generation: GenerationParams | None
) -> list[_Prompt]:
    """Test rows from the shortest to the longest as the model is asked to go on with them, and what it writes by
    PyTorch. Of a decoder's row that is what stands before its first label, but half of it at least."""
    import numpy as np
    import torch
    from transformers import GenerationConfig

    tokenizer = open_tokenizer(export)
    settings = generation_config(
        generation or GenerationParams(), tokenizer, model_ends(model), task.end_of_answer(tokenizer)
    )
    ends: list[int] = settings.get("eos_token_id", [])
    longest = None if model.config.is_encoder_decoder else room(model)
    found = []
    for row in spread_over_lengths(tokens, CONTINUED_ROWS):
        ids, labels = row["input_ids"], row["labels"]
        inputs: dict[str, Any] = {}
        start = None
        if model.config.is_encoder_decoder:
            inputs = {name: values[:, :1] for name, values in decoder_inputs(model, torch.tensor([labels])).items()}
            start = int(inputs["decoder_input_ids"])
        else:
            first = next((at for at, label in enumerate(labels) if label != IGNORED), len(ids))
            ids = ids[: max(first, len(ids) // 2)]
        limit = NEW_TOKENS if longest is None else min(NEW_TOKENS, longest - len(ids))
        if not ids or limit < 1:
            continue
        inputs = {
            "input_ids": torch.tensor([ids]),
            "attention_mask": torch.ones((1, len(ids)), dtype=torch.int64),
        } | inputs
        own = GenerationConfig(
            max_new_tokens=limit,
            do_sample=False,
            eos_token_id=ends or None,
            pad_token_id=tokenizer.pad_token_id,
            decoder_start_token_id=start,
        )
        # What the model's own file says of beams or of forced tokens would be filled in.
        before, model.generation_config = model.generation_config, own
        with torch.inference_mode():
            written = model.generate(**inputs, generation_config=own)[0]
        model.generation_config = before
        new = written[len(ids) if start is None else 1 :].tolist()
        arrays = {name: np.ascontiguousarray(values.numpy()) for name, values in inputs.items()}
        found.append(_Prompt(arrays, limit, ends, new))
    return found


def _continued(runtime: Runtime, model: Any, prompts: list[_Prompt], params: ConvertParams) -> Continuation:
    """Have a form go on with the prompts, a token at a time.

    Raises
        UserError  when a form that rounds nothing writes a token that the tuned model holds for less likely.
    """
    found = Continuation(rows=len(prompts), tokens=0, same_rows=0, same_tokens=0, tied_rows=0)
    for prompt in prompts:
        ours, theirs = runtime.continuation(prompt.inputs, prompt.max_new_tokens, prompt.ends), prompt.written
        same = _same(ours, theirs)
        found.tokens += len(theirs)
        found.same_tokens += same
        if ours == theirs:
            found.same_rows += 1
            continue
        both = same < len(ours) and same < len(theirs)
        less = _lead(model, prompt, same, theirs[same], ours[same]) if both else math.inf
        if less <= params.parity_atol:
            found.tied_rows += 1
        elif not formats.load(runtime.name).QUANTIZED:
            what = (
                f"id {ours[same]} in place of {theirs[same]}, whose logit is {less:.3g} higher" if both else "the end"
            )
            raise UserError(
                f"convert: {runtime.name} goes on otherwise than the tuned model after {same} tokens that are the "
                f"same, behind a test row of {prompt.inputs['input_ids'].shape[1]} tokens: {what}; expected at most "
                f"convert.parity_atol: {params.parity_atol:g}. The last converted models are kept. Take {runtime.name} "
                "out of convert.formats."
            )
    return found


def _same(ours: list[int], theirs: list[int]) -> int:
    """How many ids are the same before the first that differs, or before one of both ends."""
    pairs = enumerate(zip(ours, theirs, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(ours), len(theirs)))


def _lead(model: Any, prompt: _Prompt, same: int, best: int, other: int) -> float:
    """How much larger the tuned model's logit of its own next token is than that of another."""
    import torch

    inputs = {name: torch.from_numpy(values) for name, values in prompt.inputs.items()}
    grown = "decoder_input_ids" if "decoder_input_ids" in inputs else "input_ids"
    inputs[grown] = torch.cat([inputs[grown], torch.tensor([prompt.written[:same]], dtype=torch.int64)], dim=1)
    if grown == "input_ids":
        inputs["attention_mask"] = torch.ones_like(inputs[grown])
    with torch.inference_mode():
        logits = model(**inputs).logits[0, -1]
    return float(logits[best] - logits[other])


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


def _check_loss(name: str, metric: str, tuned: float, found: float, change: Estimate, params: ConvertParams) -> None:
    if -change.value > params.max_metric_loss:
        raise UserError(
            f"convert: {name} has {metric} {found:.4f} on test, and the tuned model {tuned:.4f}: a loss of "
            f"{-change.value:.4f} ({-change.high:.4f} to {-change.low:.4f}); expected at most "
            f"convert.max_metric_loss: {params.max_metric_loss:g}. The last converted models are kept. "
            f"Take {name} out of convert.formats, or allow a larger loss."
        )


if __name__ == "__main__":
    run_stage(run)
