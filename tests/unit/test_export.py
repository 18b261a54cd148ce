# ruff: noqa: S106 - the tokens of a tokenizer are no passwords
"""export, on a BERT of two layers that was never trained: its logits are as good as any to compare."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stages.export import ExportParams, ExportPaths, ExportReport, _check_logits, _write_generation_config, run
from tests.exported import evaluated, passed
from tunewright.chat_templates import PLAIN
from tunewright.compute import open_tuned
from tunewright.control import Control
from tunewright.errors import GateClosed, UserError
from tunewright.exported import Exported
from tunewright.files import read_parquet, sha256_file, sha256_tree, write_json, write_parquet
from tunewright.generation import GenerationParams, write
from tunewright.language_model import Writer
from tunewright.model_card import loading
from tunewright.parity import Batch, compared_step, parity
from tunewright.proofs import AsModel, OnTest
from tunewright.task import Predicting, TaskType
from tunewright.task_types import causal_lm, chat, instruction, seq2seq_lm
from tunewright.task_types.text_classification import Task, TaskParams
from tunewright.tokenizer import open_tokenizer

CARD = ("README.md", "DATA_SHEET.md", "card.json")
FACTS = {
    "evaluate.splits.test.metrics.accuracy.value": (0.5, "reports/evaluate.json", "e" * 64),
    "fetch_model.model_name_or_path": ("org/name", "reports/fetch_model.json", "f" * 64),
    "fetch_model.sha256": ("b" * 64, "reports/fetch_model.json", "f" * 64),
    "ingest.sources.0.sha256": ("a" * 64, "reports/ingest.json", "1" * 64),
    "ingest.sources.0.rows.rows_in": (7, "reports/ingest.json", "1" * 64),
}
"""Of the card: value, file and its SHA-256."""
LABELS = ["bad", "good", "mixed"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "fine", "film", "dull", "play", "long", "##er"]
TASK = Task(TaskParams(type="text_classification", labels=LABELS))
EVALUATE = SimpleNamespace(
    per_device_eval_batch_size=8, max_tokens_per_batch=None, calibration_bins=10, generation=None
)
PARAMS = ExportParams(onnx=True, opset_version=18, parity_rows=20, parity_atol=1e-4)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `finetune` leaves it: save_pretrained, and the tokenizer's files."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("export") / "tuned"
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=48,
        hidden_dropout_prob=0.5,
        initializer_range=0.5,
        layer_norm_eps=1e-6,
        id2label=dict(enumerate(LABELS)),
        label2id={label: at for at, label in enumerate(LABELS)},
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordPiece({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    return folder


def project(tuned: Path, folder: Path, task: TaskType = TASK, **more: list[list[int]]) -> ExportPaths:
    """A project whose gate has passed the model, with 30 test rows of 2 to 31 tokens, and more columns of them."""
    import pyarrow as pa

    lengths = [2 + row for row in range(30)]
    columns = {
        "row_id": [f"r{row}" for row in range(30)],
        "input_ids": pa.array([[4 + at % 7 for at in range(n)] for n in lengths], type=pa.list_(pa.int32())),
        "labels": pa.array([row % 3 for row in range(30)]),
        "length": pa.array(lengths, type=pa.int32()),
    }
    table = pa.table(columns | more)
    (folder / "tokens").mkdir()
    with pa.OSFile(str(folder / "tokens/test.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table)
    texts = {"text": ["a fine film"] * 30, "target": ["a dull play"] * 30}
    rows = pa.table({"row_id": table["row_id"], "label": [LABELS[row % 3] for row in range(30)], **texts})
    write_parquet(rows, folder / "prepared/test.parquet")
    shutil.copytree(tuned, folder / "tuned")
    write_json(folder / "control.json", Control(temperature=1.25, abstain_below=0.5).model_dump(mode="json"))
    (folder / "card").mkdir()
    for name in CARD[:2]:
        (folder / "card" / name).write_text(f"{name} of the card\n")
    facts = {name: {"value": value, "file": file, "sha256": sha256} for name, (value, file, sha256) in FACTS.items()}
    write_json(folder / "card/card.json", {"facts": facts})
    write_json(folder / "threshold_policy.json", {"groups": {"women": {}}})
    paths = ExportPaths(
        threshold_policy=folder / "threshold_policy.json",
        tuned_model=folder / "tuned",
        control=folder / "control.json",
        model_passed=folder / "model.passed",
        tokens=folder / "tokens",
        prepared=folder / "prepared",
        evaluate_report=folder / "evaluate.json",
        card=folder / "card",
        export=folder / "export",
    )
    judged = {"control": paths.control, "card": paths.card, "threshold_policy": paths.threshold_policy}
    passed(paths.model_passed, model=paths.tuned_model, **judged)
    evaluated(paths.evaluate_report, task, paths.tuned_model, paths.prepared, paths.tokens, EVALUATE)
    return paths


def export(
    paths: ExportPaths, params: ExportParams = PARAMS, task: TaskType = TASK, evaluate: Any = EVALUATE
) -> ExportReport:
    return run(paths, params, task, seed=1, num_threads=1, evaluate=evaluate)


@pytest.fixture(scope="module")
def exported(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ExportPaths, dict[str, object]]:
    """One export, for every test that only looks at it."""
    paths = project(tuned, tmp_path_factory.mktemp("project"))
    return paths, export(paths).model_dump(mode="json")


def test_each_form_gives_the_tuned_models_logits(exported):
    _, report = exported
    assert report["forms"]["safetensors"]["max_abs_difference"] == 0.0
    assert 0.0 <= report["forms"]["onnx"]["max_abs_difference"] < 1e-5
    for form in report["forms"].values():
        # 20 of 30 rows, from the shortest (2 tokens) to the longest (31): all padded, each end alone, then 16 and 4.
        assert form["parity_rows"] == 20
        assert form["shapes"] == [[20, 31], [1, 2], [1, 31], [16, 31], [4, 7]]


def test_verified_holds_the_metric_that_each_form_gives_by_itself(exported):
    """By onnxruntime and by plain Transformers, as whoever has the files would do it."""
    import numpy as np
    import onnxruntime
    import torch
    from transformers import AutoModelForSequenceClassification

    paths, report = exported
    told = json.loads((paths.export / "VERIFIED").read_text())
    assert told == {"model_sha256": sha256_tree(paths.tuned_model), "forms": report["forms"]}
    session = onnxruntime.InferenceSession(paths.export / "model.onnx", providers=["CPUExecutionProvider"])
    model = AutoModelForSequenceClassification.from_pretrained(paths.export)
    right = {"onnx": 0, "safetensors": 0}
    for row in range(30):
        ids = np.array([[4 + at % 7 for at in range(2 + row)]], dtype=np.int64)
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        right["onnx"] += int(session.run(["logits"], inputs)[0].argmax()) == row % 3
        with torch.inference_mode():
            logits = model(**{name: torch.from_numpy(values) for name, values in inputs.items()}).logits
        right["safetensors"] += int(logits.argmax()) == row % 3
    assert 0 < right["onnx"] < 30
    for form, count in right.items():
        found = told["forms"][form]
        assert (found["metric"], found["test_rows"]) == ("accuracy", 30)
        assert found["exported"] == found["tuned"] == pytest.approx(count / 30)
        listed = json.loads((paths.export / "MANIFEST.json").read_text())["files"]
        assert {name: listed[name] for name in found["files"]} == found["files"]
    assert set(told["forms"]["onnx"]["files"]) == {"model.onnx"}
    assert set(told["forms"]["safetensors"]["files"]) == {"config.json", "model.safetensors"}


def test_another_metric_than_was_evaluated_is_refused_and_the_last_export_stays(tuned, tmp_path):
    paths = project(tuned, tmp_path)
    paths.export.mkdir()
    (paths.export / "old").write_text("the last good export")
    report = json.loads(paths.evaluate_report.read_text())
    value = report["splits"]["test"]["metrics"]["accuracy"]["value"]
    report["splits"]["test"]["metrics"]["accuracy"]["value"] = value + 0.001
    write_json(paths.evaluate_report, report)
    told = rf"exported safetensors has accuracy {value:.6g} on test; expected {value + 0.001:.6g}, as .*evaluate\.json"
    with pytest.raises(UserError, match=told):
        export(paths, PARAMS.model_copy(update={"onnx": False}))
    assert [found.name for found in tmp_path.glob("export/*")] == ["old"]
    assert not list(tmp_path.glob(".export*"))


def answering(tuned: Path, folder: Path, *logits: float) -> Path:
    """The tuned model with another head: these are its logits of every text."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(tuned, folder)
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"].zero_()
    weights["classifier.bias"] = weights["classifier.bias"].new_tensor(logits)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_of_two_answers_that_are_as_good_as_equal_a_form_may_give_either(tuned, tmp_path):
    """Runtimes differ in the last digits of logits, and so in their answers to a text for which two logits tie."""
    of_two = [LABELS[0]] * 20 + [LABELS[1]] * 10
    paths = project(answering(tuned, tmp_path / "tied", 0.0, 0.0, -1.0), tmp_path)
    test = read_parquet(paths.prepared / "test.parquet")
    test = test.set_column(test.column_names.index("label"), "label", [of_two])
    on_test = OnTest(TASK, paths.tuned_model, test, paths.tokens, EVALUATE, seed=1)
    model = open_tuned(TASK, paths.tuned_model).eval()
    value = on_test.value(on_test.predictions(model))
    assert value == pytest.approx(2 / 3)
    for name, second, only_ties in (("a hair above", 5e-5, True), ("another model", 2e-4, False)):
        with Exported("safetensors", answering(tuned, tmp_path / name, 0.0, second, -1.0), 1) as form:
            assert on_test.value(on_test.predictions(AsModel(form, model))) == pytest.approx(1 / 3)
            assert on_test.only_ties_differ(form, model, value) is only_ties
            # A report of another model's metric is not explained by ties.
            assert not on_test.only_ties_differ(form, model, value + 0.001)
    with Exported("safetensors", answering(tuned, tmp_path / "no number", 0.0, float("nan"), -1.0), 1) as form:
        assert not on_test.only_ties_differ(form, model, value)


@pytest.mark.parametrize("what", ["tuned_model", "control", "tokens", "card", "threshold_policy"])
def test_a_bit_that_was_changed_after_the_gate_is_not_exported(tuned, tmp_path, what):
    """FAULTS.md row 11, where an object of DVC's cache was altered and laid out again."""
    paths = project(tuned, tmp_path)
    paths.export.mkdir()
    (paths.export / "old").write_text("the last good export")
    path = getattr(paths, what)
    expected = sha256_tree(path)
    inside = {"tuned_model": "model.safetensors", "tokens": "test.arrow", "card": "README.md"}
    file = path / inside[what] if what in inside else path
    content = bytearray(file.read_bytes())
    content[-2] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"{path}: SHA-256 {sha256_tree(path)}; expected {expected}.* Run `dvc repro`"):
        export(paths)
    assert [found.name for found in tmp_path.glob("export/*")] == ["old"]


def test_the_manifest_names_every_file_by_its_bytes(exported):
    paths, report = exported
    manifest = json.loads((paths.export / "MANIFEST.json").read_text())
    files = {found.name for found in paths.export.iterdir()} - {"MANIFEST.json"}
    assert all((paths.export / name).read_bytes() == (paths.card / name).read_bytes() for name in CARD)
    assert set(manifest["files"]) == files
    assert files >= {*CARD, "config.json", "model.onnx", "model.safetensors", "threshold_policy.json", "tokenizer.json"}
    for name, entry in manifest["files"].items():
        assert entry == {"sha256": sha256_file(paths.export / name), "size": (paths.export / name).stat().st_size}
    assert manifest["model_sha256"] == sha256_tree(paths.tuned_model)
    judged = json.loads(paths.model_passed.read_text())
    assert manifest["passed"] == judged and manifest["files"]["control.json"]["sha256"] == judged["control"]
    assert manifest["opset_version"] == 18
    assert manifest["files"] == report["files"]


def test_the_manifest_holds_the_chain_back_so_far_as_export_sees_it(exported):
    paths, _ = exported
    assert json.loads((paths.export / "MANIFEST.json").read_text())["chain"] == {
        "weights": sha256_tree(paths.tuned_model),
        "tokens": sha256_tree(paths.tokens),
        "origin": {
            "fetch_model.model_name_or_path": "org/name",
            "fetch_model.sha256": "b" * 64,
            "ingest.sources.0.sha256": "a" * 64,
        },
        "reports": {
            "reports/evaluate.json": "e" * 64,
            "reports/fetch_model.json": "f" * 64,
            "reports/ingest.json": "1" * 64,
        },
    }


def test_plain_transformers_opens_it_with_real_label_names(exported):
    from transformers import pipeline

    paths, _ = exported
    classify = pipeline("text-classification", str(paths.export), device="cpu")
    answers = classify("A finer film", top_k=None)
    assert {answer["label"] for answer in answers} == set(LABELS)
    assert sum(answer["score"] for answer in answers) == pytest.approx(1.0, abs=1e-5)


def test_its_control_stands_in_its_config_too(exported):
    from transformers import AutoModelForSequenceClassification

    paths, _ = exported
    config = AutoModelForSequenceClassification.from_pretrained(paths.export).config
    assert (config.calibration_temperature, config.abstain_below) == (1.25, 0.5)


def test_a_control_that_the_gate_did_not_judge_is_not_exported(tuned, tmp_path):
    paths = project(tuned, tmp_path)
    write_json(paths.control, Control(temperature=9.0).model_dump(mode="json"))
    with pytest.raises(GateClosed, match="passed another control"):
        export(paths)


def test_onnx_takes_any_batch_and_length_and_names_them(exported):
    import numpy as np
    import onnxruntime

    paths, _ = exported
    session = onnxruntime.InferenceSession(paths.export / "model.onnx", providers=["CPUExecutionProvider"])
    assert [(given.name, given.shape) for given in session.get_inputs()] == [
        ("input_ids", ["batch", "length"]),
        ("attention_mask", ["batch", "length"]),
    ]
    for shape in [(1, 1), (7, 3), (2, 48)]:
        ones = np.ones(shape, dtype=np.int64)
        (logits,) = session.run(["logits"], {"input_ids": ones, "attention_mask": ones})
        assert logits.shape == (shape[0], 3)


def test_a_second_export_has_the_same_bytes_and_no_path_of_this_machine(exported, tuned, tmp_path):
    paths, report = exported
    again = project(tuned, tmp_path)
    assert export(again).model_dump(mode="json") == report
    assert sha256_tree(again.export) == sha256_tree(paths.export)
    graph = (paths.export / "model.onnx").read_bytes()
    assert b".py" not in graph and str(Path.cwd()).encode() not in graph


def test_without_onnx_only_the_safetensors_are_compared(tuned, tmp_path):
    paths = project(tuned, tmp_path)
    report = export(paths, PARAMS.model_copy(update={"onnx": False}))
    assert set(report.forms) == {"safetensors"} and report.opset_version is None
    assert not (paths.export / "model.onnx").exists()


@pytest.mark.parametrize(
    ("way", "settings"),
    [
        ("lora", {"lora_r": 2, "lora_alpha": 4, "lora_dropout": 0.0, "lora_target_modules": "all-linear"}),
        ("prompt", {"num_virtual_tokens": 3}),
        ("prefix", {"num_virtual_tokens": 3}),
    ],
)
def test_an_adapter_goes_with_its_model(tuned, tmp_path, way, settings):
    import torch

    from tunewright import tuning

    chosen = tuning.TuningParams(finetuning_type=way, freeze_embeddings=False, **settings)
    torch.manual_seed(2)
    model = tuning.prepare(TASK.load_model(tuned, {}), TASK, chosen, longest=31)
    for weights in model.parameters():  # as after a training: at the start LoRA's second factor is 0
        if weights.requires_grad:
            torch.nn.init.normal_(weights, std=0.3)
    folder = tmp_path / "with_adapter"
    shutil.copytree(tuned, folder, ignore=shutil.ignore_patterns("config.json", "model.safetensors"))
    tuning.save(model, TASK, folder, tuned, chosen)
    paths = project(folder, tmp_path)
    report = export(paths)
    assert report.forms["safetensors"].max_abs_difference == 0.0
    assert report.forms["onnx"].max_abs_difference < 1e-5
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} < set(report.files)
    assert ("model.safetensors" in report.files) is (way == "lora")
    assert ("base_model/model.safetensors" in report.files) is (way != "lora")


def test_a_model_that_writes_is_compared_by_its_decoder_and_keeps_how_it_writes(tuned, tmp_path):
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(4)
    config = T5Config(vocab_size=20, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
    folder = tmp_path / "t5"
    T5ForConditionalGeneration(config).save_pretrained(folder)
    for file in tuned.glob("tokenizer*"):
        shutil.copy(file, folder)
    task = seq2seq_lm.Task(seq2seq_lm.TaskParams(type="seq2seq_lm"))
    targets = [[2 + row % 7, 9, 1][row % 2 :] for row in range(30)]
    paths = project(folder, tmp_path, task, labels=targets, bytes=[11] * 30)
    with pytest.raises(UserError, match="ONNX form of a T5ForConditionalGeneration is not built here"):
        export(paths, task=task)
    how = SimpleNamespace(
        **{**vars(EVALUATE), "generation": GenerationParams(max_new_tokens=7, num_beams=3, bad_words=["dull"])}
    )
    report = export(paths, PARAMS.model_copy(update={"onnx": False}), task, how)
    assert report.forms["safetensors"].max_abs_difference == 0.0
    written = json.loads((paths.export / "generation_config.json").read_text())
    assert (written["max_new_tokens"], written["num_beams"], written["eos_token_id"]) == (7, 3, [1])
    assert [7] in written["bad_words_ids"]  # as its tokenizer has it


def louder(folder: Path, target: Path, kind: str) -> Path:
    """The model with larger weights: a random one of the usual scale says the same thing over and over."""
    import torch
    import transformers

    shutil.copytree(folder, target)
    model = getattr(transformers, kind).from_pretrained(folder)
    torch.manual_seed(3)
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(torch.randn_like(weights) * 0.3)
    model.save_pretrained(target)
    return target


def of_the_card(task: TaskType, folder: Path) -> str:
    """What the card's snippet prints, run as it stands."""
    code = loading(task).removeprefix("```python\n").partition("\n```")[0].replace('"FOLDER"', repr(str(folder)))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, {})  # noqa: S102 - our own lines
    return printed.getvalue()


@pytest.mark.parametrize("said_by", ["nobody", "params", "template", "params of an encoder-decoder"])
def test_the_snippet_of_the_card_stops_where_the_evaluation_did(said_by, tiny_decoder, tiny_encoder_decoder, tmp_path):
    two_sided = said_by.endswith("encoder-decoder")
    base, kind = (tiny_decoder, "AutoModelForCausalLM")
    task: TaskType = chat.Task(chat.TaskParams(type="chat", chat_template="plain"))
    if two_sided:
        base, kind = (tiny_encoder_decoder, "AutoModelForSeq2SeqLM")
        task = seq2seq_lm.Task(seq2seq_lm.TaskParams(type="seq2seq_lm"))
    folder = louder(base, tmp_path / "louder", kind)
    ask_by_template(task, folder)
    how = GenerationParams(max_new_tokens=12)
    free = written_by(task, folder, how)
    stop = "qu qu" if two_sided else free[2:5]
    assert free.partition(stop)[2]
    if said_by == "template":
        own = PLAIN.replace("eos_token", json.dumps(stop))
        task = chat.Task(chat.TaskParams(type="chat", chat_template=own))
        ask_by_template(task, folder)
    elif said_by != "nobody":
        how = how.model_copy(update={"stop_strings": [stop]})
    _write_generation_config(task.load_model(folder, {}), task, how, folder)
    shown = of_the_card(task, folder)
    text = shown.rstrip("\n") if two_sided else ast.literal_eval(shown)[0]["generated_text"][-1]["content"]
    if said_by == "nobody":
        assert text == free
    else:  # with the string itself, and the rest of the token that brought it
        assert text.startswith(free.partition(stop)[0] + stop) and len(text) < len(free)
        assert written_by(task, folder, how) == free.partition(stop)[0]
    plain = transformers_alone(folder, kind)  # told of no stop string, and no error
    assert plain == free


PROMPTED = {"type": "instruction", "prompt_template": "Say: {text}!"}


@pytest.mark.parametrize(
    ("task", "prompt"),
    [
        (instruction.Task(instruction.TaskParams(**PROMPTED)), "Say: A text.!\n"),
        (instruction.Task(instruction.TaskParams(**PROMPTED, chat_template="bare")), "Say: A text.!\n"),
        (instruction.Task(instruction.TaskParams(**PROMPTED, chat_template="plain")), None),
        (chat.Task(chat.TaskParams(type="chat", chat_template="bare")), "A text.\n"),
        (causal_lm.Task(causal_lm.TaskParams(type="causal_lm")), "A text."),
    ],
)
def test_the_snippet_of_the_card_asks_as_the_job_does(task, prompt, tiny_decoder, tmp_path):
    folder = louder(tiny_decoder, tmp_path / "louder", "AutoModelForCausalLM")
    ask_by_template(task, folder)
    how = GenerationParams(max_new_tokens=12)
    _write_generation_config(task.load_model(folder, {}), task, how, folder)
    [shown] = ast.literal_eval(of_the_card(task, folder))
    if prompt is None:
        asked, answer = shown["generated_text"]
        assert asked == {"role": "user", "content": "Say: A text.!"}
        assert answer["content"] == written_by(task, folder, how, "Say: A text.!")
    else:
        assert shown["generated_text"] == prompt + written_by(task, folder, how, prompt.rstrip("\n"))


def test_the_snippet_of_an_encoder_decoder_asks_in_its_template():
    params = seq2seq_lm.TaskParams(type="seq2seq_lm", prompt_template='say "{text}" in French')
    assert r'tokenizer("say \"A text.\" in French", return_tensors="pt")' in loading(seq2seq_lm.Task(params))


def ask_by_template(task: TaskType, folder: Path) -> None:
    """Leave the job's chat template in the folder, as `finetune` does."""
    for name, text in task.files(open_tokenizer(folder)).items():
        (folder / name).write_text(text, encoding="utf-8")


def written_by(task: TaskType, folder: Path, how: GenerationParams, text: str = "A text.") -> str:
    """What Tunewright has the model write after the text."""
    tokenizer = open_tokenizer(folder)
    ids = task.request(tokenizer, text) if isinstance(task, Writer) else tokenizer.backend.encode(text).ids
    end = task.end_of_answer(tokenizer)
    return write(task.load_model(folder, {}), tokenizer, [ids], Predicting(1, 0, how), end=end)[0]


def transformers_alone(folder: Path, kind: str) -> str:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = getattr(transformers, kind).from_pretrained(folder)
    read = tokenizer("A text.", return_tensors="pt")
    if tokenizer.chat_template:
        asked = [{"role": "user", "content": "A text."}]
        read = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    before = 0 if model.config.is_encoder_decoder else read["input_ids"].shape[1]
    return str(tokenizer.decode(model.generate(**read)[0, before:], skip_special_tokens=True))


def test_of_large_logits_positions_at_even_steps_are_compared(monkeypatch):
    assert compared_step((2, 10, 4)) == 1
    monkeypatch.setattr("tunewright.parity.MAX_LOGITS", 30)
    assert compared_step((2, 10, 4)) == 3  # 80 numbers: every third position
    assert compared_step((2, 4)) == 1


def test_a_model_that_the_gate_did_not_pass_is_not_exported(tuned, tmp_path):
    paths = project(tuned, tmp_path)
    config = paths.tuned_model / "config.json"
    config.write_text(config.read_text().replace('"bad"', '"worse"'))
    with pytest.raises(GateClosed, match="passed another model"):
        export(paths)
    paths.model_passed.unlink()
    with pytest.raises(GateClosed, match="closed"):
        export(paths)
    assert not paths.export.exists()


def test_an_export_that_differs_is_refused_and_the_last_one_stays(tuned, tmp_path, monkeypatch):
    """The tuned model here is in train mode, as the exporter can leave one: dropout makes its logits others."""
    paths = project(tuned, tmp_path)
    paths.export.mkdir()
    (paths.export / "old").write_text("the last good export")

    class Dropping(Task):
        def load_model(self, folder, settings):
            model = super().load_model(folder, settings)
            model.eval = lambda: model.train()
            return model

    params = PARAMS.model_copy(update={"onnx": False})
    with pytest.raises(UserError, match=r"safetensors are .* away .* expected at most export.parity_atol: 0.0001"):
        export(paths, params, Dropping(TASK.params))
    assert [found.name for found in tmp_path.glob("export/*")] == ["old"]
    assert not list(tmp_path.glob(".export*"))


def test_the_comparison_finds_the_worst_batch(exported):
    import numpy as np
    import onnxruntime

    paths, _ = exported
    session = onnxruntime.InferenceSession(paths.export / "model.onnx", providers=["CPUExecutionProvider"])
    batches = []
    for rows, moved in [(1, 0.0), (2, -0.25), (3, 0.125)]:
        inputs = {name: np.ones((rows, 5), dtype=np.int64) for name in ("input_ids", "attention_mask")}
        logits = session.run(["logits"], inputs)[0]
        logits[0, 1] += moved
        batches.append(Batch(inputs, logits, inputs["attention_mask"] == 1))
    with Exported("onnx", paths.export, 1) as opened:
        found = parity(opened, batches)
        assert found.max_abs_difference == pytest.approx(0.25, abs=1e-6) and found.shape == (2, 5)
        batches[2].logits[0, 0] = np.nan
        found = parity(opened, batches)
    assert found.max_abs_difference is None and found.shape == (3, 5)
    with pytest.raises(UserError, match="exported onnx are not finite"):
        _check_logits("onnx", found, 1e-4)


def test_a_form_that_does_not_open_says_why(exported, tmp_path):
    with Exported("onnx", tmp_path, 1) as opened, pytest.raises(RuntimeError, match=r"(?s)fresh process:.*model\.onnx"):
        opened.logits({})
