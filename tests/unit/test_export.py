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
from typing import ClassVar

import pytest

from stages.export import ExportParams, ExportPaths, _check, _write_generation_config, run
from tunewright.control import Control
from tunewright.errors import GateClosed, UserError
from tunewright.files import sha256_file, sha256_tree, write_json
from tunewright.generation import GenerationParams, write
from tunewright.model_card import loading
from tunewright.parity import compare, compared_part, write_batches
from tunewright.task import Predicting, TaskType
from tunewright.task_types import chat, seq2seq_lm
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
EVALUATE = SimpleNamespace(generation=None)
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


def project(tuned: Path, folder: Path, **more: list[list[int]]) -> ExportPaths:
    """A project whose gate has passed the model, with 30 test rows of 2 to 31 tokens, and more columns of them."""
    import pyarrow as pa

    lengths = [2 + row for row in range(30)]
    table = pa.table(
        {
            "row_id": [f"r{row}" for row in range(30)],
            "input_ids": pa.array([[4 + at % 7 for at in range(n)] for n in lengths], type=pa.list_(pa.int32())),
            "labels": pa.array([row % 3 for row in range(30)]),
            "length": pa.array(lengths, type=pa.int32()),
            **more,
        }
    )
    (folder / "tokens").mkdir()
    with pa.OSFile(str(folder / "tokens/test.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table)
    shutil.copytree(tuned, folder / "tuned")
    write_json(folder / "control.json", Control(temperature=1.25, abstain_below=0.5).model_dump(mode="json"))
    passed = {"model": sha256_tree(folder / "tuned"), "control": sha256_file(folder / "control.json")}
    write_json(folder / "model.passed", passed)
    (folder / "card").mkdir()
    for name in CARD[:2]:
        (folder / "card" / name).write_text(f"{name} of the card\n")
    facts = {name: {"value": value, "file": file, "sha256": sha256} for name, (value, file, sha256) in FACTS.items()}
    write_json(folder / "card/card.json", {"facts": facts})
    write_json(folder / "threshold_policy.json", {"groups": {"women": {}}})
    return ExportPaths(
        threshold_policy=folder / "threshold_policy.json",
        tuned_model=folder / "tuned",
        control=folder / "control.json",
        model_passed=folder / "model.passed",
        tokens=folder / "tokens",
        card=folder / "card",
        export=folder / "export",
    )


@pytest.fixture(scope="module")
def exported(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ExportPaths, dict[str, object]]:
    """One export, for every test that only looks at it."""
    paths = project(tuned, tmp_path_factory.mktemp("project"))
    return paths, run(paths, PARAMS, TASK, num_threads=1, evaluate=EVALUATE).model_dump(mode="json")


def test_each_form_gives_the_tuned_models_logits(exported):
    _, report = exported
    assert report["parity"]["safetensors"]["max_abs_difference"] == 0.0
    assert 0.0 <= report["parity"]["onnx"]["max_abs_difference"] < 1e-5
    # 20 of 30 rows, from the shortest (2 tokens) to the longest (31): all padded, each end alone, then 16 and 4.
    assert report["parity_rows"] == 20
    assert report["shapes"] == [[20, 31], [1, 2], [1, 31], [16, 31], [4, 7]]


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
    passed = {"model": sha256_tree(paths.tuned_model), "control": sha256_file(paths.control)}
    assert manifest["passed"] == passed and manifest["files"]["control.json"]["sha256"] == passed["control"]
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
        run(paths, PARAMS, TASK, num_threads=1, evaluate=EVALUATE)


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
    assert run(again, PARAMS, TASK, num_threads=1, evaluate=EVALUATE).model_dump(mode="json") == report
    assert sha256_tree(again.export) == sha256_tree(paths.export)
    graph = (paths.export / "model.onnx").read_bytes()
    assert b".py" not in graph and str(Path.cwd()).encode() not in graph


def test_without_onnx_only_the_safetensors_are_compared(tuned, tmp_path):
    paths = project(tuned, tmp_path)
    report = run(paths, PARAMS.model_copy(update={"onnx": False}), TASK, num_threads=1, evaluate=EVALUATE)
    assert set(report.parity) == {"safetensors"} and report.opset_version is None
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
    report = run(paths, PARAMS, TASK, num_threads=1, evaluate=EVALUATE)
    assert report.parity["safetensors"].max_abs_difference == 0.0
    assert report.parity["onnx"].max_abs_difference < 1e-5
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} < set(report.files)
    assert ("model.safetensors" in report.files) is (way == "lora")
    assert ("base_model/model.safetensors" in report.files) is (way != "lora")


class Writing(TaskType):
    """A job for an encoder-decoder, as far as its export asks for it."""

    generates: ClassVar[bool] = True

    def load_model(self, folder, settings):
        from transformers import AutoModelForSeq2SeqLM

        return AutoModelForSeq2SeqLM.from_pretrained(folder, **settings)

    def collate(self, rows, pad_token_id):
        import torch

        width = max(len(row["input_ids"]) for row in rows)
        ids = torch.tensor([row["input_ids"] + [pad_token_id] * (width - len(row["input_ids"])) for row in rows])
        labels = torch.tensor([row["target_ids"] for row in rows])
        return {"input_ids": ids, "attention_mask": (ids != pad_token_id).long(), "labels": labels}


def test_a_model_that_writes_is_compared_by_its_decoder_and_keeps_how_it_writes(tuned, tmp_path):
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(4)
    config = T5Config(vocab_size=20, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
    folder = tmp_path / "t5"
    T5ForConditionalGeneration(config).save_pretrained(folder)
    for file in tuned.glob("tokenizer*"):
        shutil.copy(file, folder)
    paths = project(folder, tmp_path, target_ids=[[2 + row % 7, 9, 1] for row in range(30)])
    task = Writing(None)
    with pytest.raises(UserError, match="ONNX form of a T5ForConditionalGeneration is not built here"):
        run(paths, PARAMS, task, num_threads=1, evaluate=EVALUATE)
    how = SimpleNamespace(generation=GenerationParams(max_new_tokens=7, num_beams=3, bad_words=["dull"]))
    report = run(paths, PARAMS.model_copy(update={"onnx": False}), task, num_threads=1, evaluate=how)
    assert report.parity["safetensors"].max_abs_difference == 0.0
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
    how = GenerationParams(max_new_tokens=12)
    free = written_by(task, folder, how)
    stop = "qu qu" if two_sided else free[2:5]
    assert free.partition(stop)[2]
    if said_by == "template":
        own = f"{{% for one in messages %}}{{{{ one['content'] + {json.dumps(stop)} }}}}{{% endfor %}}"
        task = chat.Task(chat.TaskParams(type="chat", chat_template=own))
    elif said_by != "nobody":
        how = how.model_copy(update={"stop_strings": [stop]})
    _write_generation_config(task.load_model(folder, {}), task, how, folder)
    shown = of_the_card(task, folder)
    text = shown.rstrip("\n") if two_sided else ast.literal_eval(shown)[0]["generated_text"].removeprefix("A text.")
    if said_by == "nobody":
        assert text == free
    else:  # with the string itself, and the rest of the token that brought it
        assert text.startswith(free.partition(stop)[0] + stop) and len(text) < len(free)
        assert written_by(task, folder, how) == free.partition(stop)[0]
    plain = transformers_alone(folder, kind)  # told of no stop string, and no error
    assert plain == free


def written_by(task: TaskType, folder: Path, how: GenerationParams) -> str:
    """What Tunewright has the model write after "A text."."""
    tokenizer = open_tokenizer(folder)
    ids = tokenizer.backend.encode("A text.").ids
    end = task.end_of_answer(tokenizer)
    return write(task.load_model(folder, {}), tokenizer, [ids], Predicting(1, 0, how), end=end)[0]


def transformers_alone(folder: Path, kind: str) -> str:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = getattr(transformers, kind).from_pretrained(folder)
    read = tokenizer("A text.", return_tensors="pt")
    before = 0 if model.config.is_encoder_decoder else read["input_ids"].shape[1]
    return str(tokenizer.decode(model.generate(**read)[0, before:], skip_special_tokens=True))


def test_of_large_logits_positions_at_even_steps_are_compared(monkeypatch):
    import numpy as np

    logits = np.arange(2 * 10 * 4).reshape(2, 10, 4)
    assert compared_part(logits) is logits
    monkeypatch.setattr("tunewright.parity.MAX_LOGITS", 30)
    found = compared_part(logits)  # 80 numbers: every third position
    assert found.shape == (2, 4, 4) and (found[:, 1] == logits[:, 3]).all()
    assert compared_part(logits[:, 0]).shape == (2, 4)


def test_a_model_that_the_gate_did_not_pass_is_not_exported(tuned, tmp_path):
    paths = project(tuned, tmp_path)
    config = paths.tuned_model / "config.json"
    config.write_text(config.read_text().replace('"bad"', '"worse"'))
    with pytest.raises(GateClosed, match="passed another model"):
        run(paths, PARAMS, TASK, num_threads=1, evaluate=EVALUATE)
    paths.model_passed.unlink()
    with pytest.raises(GateClosed, match="closed"):
        run(paths, PARAMS, TASK, num_threads=1, evaluate=EVALUATE)
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
        run(paths, params, Dropping(TASK.params), num_threads=1, evaluate=EVALUATE)
    assert [found.name for found in tmp_path.glob("export/*")] == ["old"]
    assert not list(tmp_path.glob(".export*"))


def test_the_comparison_finds_the_worst_batch(exported, tmp_path):
    import numpy as np
    import onnxruntime

    paths, _ = exported
    session = onnxruntime.InferenceSession(paths.export / "model.onnx", providers=["CPUExecutionProvider"])
    batches = []
    for rows, moved in [(1, 0.0), (2, -0.25), (3, 0.125)]:
        inputs = {name: np.ones((rows, 5), dtype=np.int64) for name in ("input_ids", "attention_mask")}
        logits = session.run(["logits"], inputs)[0]
        logits[0, 1] += moved
        batches.append((inputs, logits))
    write_batches(tmp_path / "batches.npz", batches)
    found = compare("onnx", paths.export, tmp_path / "batches.npz", num_threads=1)
    assert found.max_abs_difference == pytest.approx(0.25, abs=1e-6) and found.shape == (2, 5)

    batches[2][1][0, 0] = np.nan
    write_batches(tmp_path / "batches.npz", batches)
    found = compare("onnx", paths.export, tmp_path / "batches.npz", num_threads=1)
    assert found.max_abs_difference is None and found.shape == (3, 5)
    with pytest.raises(UserError, match="exported onnx are not finite"):
        _check("onnx", found, 1e-4)
