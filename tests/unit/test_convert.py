"""convert: a tiny model's further forms, each in a process of its own, and what is refused.

The tests of TensorFlow and LiteRT need environments that `make tensorflow` and `make litert` build.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ruamel.yaml import YAML

from flows.model_service import app_of
from flows.onnx_model import OnnxModel
from flows.which_model import Chosen
from stages import convert, export
from stages.convert import ConvertParams, ConvertPaths, run
from tests import exported
from tests.conftest import REPOSITORY
from tunewright import formats, runtime
from tunewright.control import Control, probabilities_of
from tunewright.errors import UserError
from tunewright.files import read_json, read_parquet, sha256_file, sha256_tree, write_json, write_parquet
from tunewright.onnx_files import session
from tunewright.params import load_params
from tunewright.parity import compared_batches, parity
from tunewright.task import TaskType
from tunewright.task_types import multi_label_classification, text_classification, text_regression, token_classification
from tunewright.tokenizer import open_tokenizer, token_table

LABELS = ["bad", "good", "mixed"]
TASK = text_classification.Task(text_classification.TaskParams(type="text_classification", labels=LABELS))
EVALUATE = SimpleNamespace(
    per_device_eval_batch_size=16,
    max_tokens_per_batch=None,
    bootstrap_samples=100,
    confidence_level=0.95,
    calibration_bins=10,
    generation=None,
)
PARAMS = ConvertParams(formats=["onnx_int8"], parity_rows=12, parity_atol=1e-4, max_metric_loss=1.0)
MAX_LENGTH = 40


def exporting(onnx: bool) -> export.ExportParams:
    return export.ExportParams(onnx=onnx, opset_version=18, parity_rows=12, parity_atol=1e-4)


WORDS = [
    "a",
    "film",
    "of",
    "such",
    "charm",
    "and",
    "wit",
    "that",
    "never",
    "feels",
    "long",
    ",",
    "though",
    "the",
    "play",
    "is",
    "dull",
]
TEXTS = [" ".join(WORDS[at % 5 : at % 5 + 1 + at % 17]) for at in range(46)] + ["Un café très âgé", "naïve façade"]


def tuned_model(
    folder: Path, base: Path, kind: str = "BertForSequenceClassification", seed: int = 1, **config: Any
) -> Path:
    """A classifier as `finetune` leaves it, with large random weights: its logits differ from row to row."""
    import torch
    import transformers

    torch.manual_seed(seed)
    settings = transformers.BertConfig.from_pretrained(base)
    names: dict[str, Any] = {
        "id2label": dict(enumerate(LABELS)),
        "label2id": {name: at for at, name in enumerate(LABELS)},
    }
    for name, value in {"initializer_range": 0.3, **names, **config}.items():
        setattr(settings, name, value)
    getattr(transformers, kind)(settings).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, folder)
    return folder


def project(
    folder: Path, tuned: Path, task: TaskType = TASK, labels: list[Any] | None = None, onnx: bool = True
) -> ConvertPaths:
    """A project whose export is done, with 48 test rows, two of them accented; by default every third label in turn."""
    import pyarrow as pa

    rows = pa.table(
        {
            "row_id": [f"r{row}" for row in range(len(TEXTS))],
            "text": TEXTS,
            "label": labels or [LABELS[row % 3] for row in range(len(TEXTS))],
        }
    )
    write_parquet(rows, folder / "prepared/test.parquet")
    table = token_table(task, rows, open_tokenizer(tuned), MAX_LENGTH).table
    (folder / "tokens").mkdir()
    with pa.OSFile(str(folder / "tokens/test.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table)
    shutil.copytree(tuned, folder / "tuned")
    write_json(folder / "control.json", Control(temperature=1.25, abstain_below=0.5).model_dump(mode="json"))
    write_json(folder / "threshold_policy.json", {})
    (folder / "card").mkdir()
    (folder / "card/README.md").write_text("# What this model is\n")
    write_json(folder / "card/card.json", {"facts": {}})
    paths = export.ExportPaths(
        tuned_model=folder / "tuned",
        control=folder / "control.json",
        threshold_policy=folder / "threshold_policy.json",
        model_passed=folder / "model.passed",
        tokens=folder / "tokens",
        prepared=folder / "prepared",
        evaluate_report=folder / "evaluate.json",
        card=folder / "card",
        export=folder / "export",
    )
    exported.passed(
        paths.model_passed,
        model=paths.tuned_model,
        control=paths.control,
        card=paths.card,
        threshold_policy=paths.threshold_policy,
    )
    exported.evaluated(paths.evaluate_report, task, paths.tuned_model, paths.prepared, paths.tokens, EVALUATE)
    export.run(paths, exporting(onnx), task, seed=1, num_threads=1, evaluate=EVALUATE)
    return ConvertPaths(
        export=folder / "export",
        tokens=folder / "tokens",
        prepared=folder / "prepared",
        converted=folder / "converted",
    )


def converted(paths: ConvertPaths, params: ConvertParams = PARAMS, task: TaskType = TASK) -> convert.ConvertReport:
    return run(paths, params, task, seed=1, num_threads=1, max_length=MAX_LENGTH, evaluate=EVALUATE)


def its_own_predictions(tuned: Path) -> list[str]:
    """The label that plain Transformers predicts of each text, so that the model is right on every row."""
    from transformers import pipeline

    classify = pipeline("text-classification", str(tuned), device="cpu")
    return [answer["label"] for answer in classify(TEXTS, truncation=True, max_length=MAX_LENGTH)]


@pytest.fixture(scope="module")
def tuned(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tuned_model(tmp_path_factory.mktemp("convert") / "tuned", tiny_model)


@pytest.fixture(scope="module")
def done(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ConvertPaths, convert.ConvertReport]:
    """Of smaller weights: eight bits leave more of them, and the logits still differ from row to row."""
    tuned = tuned_model(tmp_path_factory.mktemp("smaller") / "tuned", tiny_model, initializer_range=0.2)
    paths = project(tmp_path_factory.mktemp("project"), tuned, labels=its_own_predictions(tuned))
    return paths, converted(paths)


def test_no_format_is_made_in_no_time_and_without_reading_anything(tmp_path):
    paths = ConvertPaths(**{name: tmp_path / name for name in ConvertPaths.model_fields})
    report = converted(paths, PARAMS.model_copy(update={"formats": []}))
    assert (report.applies, report.formats) == (False, {})
    assert json.loads((paths.converted / "MANIFEST.json").read_text())["formats"] == {}


def test_int8_is_smaller_and_says_what_was_compared(done):
    paths, report = done
    found = report.formats["onnx_int8"]
    assert found.quantized and found.test_rows == 48 and found.metric == "accuracy"
    assert found.tuned == 1.0  # the labels are what it predicts
    # 45 of 48 rows here, 24 of which have the one label, 24 the other.
    assert 0.85 < found.converted <= 1.0 and found.change.value == pytest.approx(found.converted - 1.0)
    # 0.27 here, of logits from -2.2 to 0.8.
    assert 0.0 < found.max_abs_difference < 0.5
    # All 12 rows, the shortest and the longest alone, all of like length, and the two accented rows.
    assert len(found.shapes) == 5 and found.parity_rows == 14
    assert [rows for rows, _ in found.shapes] == [12, 1, 1, 12, 2]
    own = paths.converted / "onnx_int8"
    assert (own / "model.onnx").stat().st_size < (paths.export / "model.onnx").stat().st_size / 1.5
    assert json.loads((own / "VERIFIED").read_text()) == found.model_dump(mode="json")
    assert set(found.files) == {
        "model.onnx",
        "README.md",
        "config.json",
        "control.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for name, entry in found.files.items():
        assert (entry.sha256, entry.size) == (sha256_file(own / name), (own / name).stat().st_size)
    listed = json.loads((paths.converted / "MANIFEST.json").read_text())
    assert set(listed["formats"]["onnx_int8"]) == {*found.files, "VERIFIED"}


def test_the_service_answers_with_the_eight_bits_and_with_no_byte_that_was_not_proven(done, tmp_path):
    import numpy as np
    from starlette.testclient import TestClient

    paths, report = done
    found = report.formats["onnx_int8"]
    params = YAML(typ="safe").load(REPOSITORY / "params.yaml")
    params["task"]["labels"], params["tokenize"]["max_length"] = LABELS, MAX_LENGTH
    params["audit_data"]["favourable_label"] = "good"
    YAML(typ="safe").dump(params, tmp_path / "params.yaml")
    by = Chosen(load_params(tmp_path / "params.yaml"), tmp_path / "form", "the form")
    shutil.copytree(paths.converted / "onnx_int8", by.folder)
    model = OnnxModel(by.folder, by.params)
    labels = read_parquet(paths.prepared / "test.parquet")["label"].to_pylist()
    predicted = [LABELS[at] for at in model.logits(TEXTS).argmax(axis=1)]
    assert np.mean([ours == theirs for ours, theirs in zip(predicted, labels, strict=True)]) == found.converted
    with TestClient(app_of(model, by, "127.0.0.1", None, 8), base_url="http://127.0.0.1") as client:
        assert client.get("/model").json()["model_sha256"] == found.model_sha256
        answer = client.post("/predict", json={"texts": TEXTS[5:6]}).json()["answers"][0]
        assert max(answer["probabilities"], key=answer["probabilities"].get) == predicted[5]
    file = by.folder / "model.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match=r"model\.onnx: is missing or not as VERIFIED has it"):
        OnnxModel(by.folder, by.params)


@pytest.mark.parametrize("place", ["export", "converted/onnx_int8"])
def test_the_example_of_the_docs_answers_without_pytorch(done, place):
    import numpy as np

    paths, _ = done
    folder = paths.export.parent / place
    page = (REPOSITORY / "docs/formats.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(import json, numpy as np, onnxruntime\n.*?)```", page, re.DOTALL)
    code = code.replace("models/converted/onnx_int8", str(folder))
    code += "import sys\nassert not {'torch', 'transformers', 'tunewright'} & set(sys.modules)\n"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    # The same by hand. Together, as there: int8 rounds what a batch holds by its largest number.
    texts, tokenizer = ["A joy from start to finish.", "Dull."], open_tokenizer(folder)
    ids = [tokenizer.backend.encode(text).ids for text in texts]
    longest = max(map(len, ids))
    asked = {
        "input_ids": np.array([[*row, *[0] * (longest - len(row))] for row in ids]),
        "attention_mask": np.array([[1] * len(row) + [0] * (longest - len(row)) for row in ids]),
    }
    (logits,) = session(folder / "model.onnx", 1).run(["logits"], asked)
    rows = probabilities_of(logits.astype(float) / 1.25, TASK)
    said = [LABELS[row.argmax()] if row.max() >= 0.5 else "(abstained)" for row in rows]
    lines = [line.rsplit(" ", 2) for line in printed.splitlines()]
    assert [line[:2] for line in lines] == [list(pair) for pair in zip(texts, said, strict=True)]
    assert [float(line[2]) for line in lines] == pytest.approx(rows.max(axis=1).tolist(), abs=2e-4)


def test_a_second_conversion_has_the_same_bytes(done, tmp_path):
    paths, _ = done
    again = paths.model_copy(update={"converted": tmp_path / "again"})
    converted(again)
    assert sha256_tree(again.converted) == sha256_tree(paths.converted)


def test_int8_of_other_weights_is_refused_and_the_last_forms_stay(done, tiny_model, tmp_path):
    """The ONNX form of a model with other weights, with a manifest that vouches for it: the metric finds it out."""
    paths, _ = done
    other = project(tmp_path / "other", tuned_model(tmp_path / "tuned", tiny_model, seed=7))
    shutil.copytree(paths.export, tmp_path / "export")
    shutil.copy(other.export / "model.onnx", tmp_path / "export/model.onnx")
    mine = paths.model_copy(update={"export": tmp_path / "export", "converted": tmp_path / "converted"})
    mine.converted.mkdir()
    (mine.converted / "old").write_text("the last good form")
    strict = PARAMS.model_copy(update={"max_metric_loss": 0.01})
    with pytest.raises(UserError, match=r"model.onnx: is not the file that was proven .* `dvc repro export`"):
        converted(mine, strict)
    manifest = json.loads((mine.export / "MANIFEST.json").read_text())
    manifest["files"]["model.onnx"]["sha256"] = sha256_file(mine.export / "model.onnx")
    write_json(mine.export / "MANIFEST.json", manifest)
    with pytest.raises(
        UserError, match=r"onnx_int8 has accuracy 0\.\d+ on test, and the tuned model 1.0000: a loss of"
    ):
        converted(mine, strict)
    assert [file.name for file in mine.converted.iterdir()] == ["old"]
    assert not list(tmp_path.glob(".converted*"))


def altered(paths: ConvertPaths, folder: Path, name: str, text: str) -> ConvertPaths:
    """The same with a file of the export changed, and its manifest made to fit."""
    export = shutil.copytree(paths.export, folder / "export")
    (export / name).write_text(text)
    manifest = read_json(export / "MANIFEST.json")
    manifest["files"][name]["sha256"] = sha256_file(export / name)
    write_json(export / "MANIFEST.json", manifest)
    return paths.model_copy(update={"export": export, "converted": folder / "converted"})


def test_another_metric_than_the_export_has_proven_is_refused(done, tmp_path):
    paths, _ = done
    told = read_json(paths.export / "VERIFIED")
    told["forms"]["safetensors"]["exported"] = 0.9
    with pytest.raises(UserError, match=r"gives accuracy 1 on test, and its VERIFIED says 0.9"):
        converted(altered(paths, tmp_path, "VERIFIED", json.dumps(told)))


def test_a_tokenizer_that_makes_other_tokens_is_refused(done, tmp_path):
    """Accents that are kept make other tokens of two rows of 48."""
    paths, _ = done
    text = read_json(paths.export / "tokenizer.json")
    text["normalizer"]["strip_accents"] = False
    with pytest.raises(UserError, match="its tokenizer makes other tokens of the texts of test"):
        converted(altered(paths, tmp_path, "tokenizer.json", json.dumps(text)))


@pytest.mark.parametrize(
    ("name", "target"), [("tensorflow", "tensorflow"), ("litert", "litert"), ("gguf_q8_0", "gguf")]
)
def test_a_missing_environment_names_the_make_target(done, tmp_path, monkeypatch, name, target):
    paths, _ = done
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.prefix", str(tmp_path / ".venv"))  # beside ours they may well stand
    asked = PARAMS.model_copy(update={"formats": [name]})
    with pytest.raises(
        UserError, match=rf"needs the environment \.venv-{target}, and there is none\. Run `make {target}`"
    ):
        converted(paths, asked)
    assert [f"`make {target}`" in fault for fault in convert.check(asked, TASK, exporting(onnx=True))] == [True]
    assert convert.check(PARAMS, TASK, exporting(onnx=True)) == []
    (fault,) = convert.check(PARAMS, TASK, exporting(onnx=False))
    assert fault.startswith("convert.formats: onnx_int8 is made of the ONNX form. Set export.onnx: true")


def test_int8_needs_the_exported_onnx(tuned, tmp_path):
    paths = project(tmp_path, tuned, onnx=False)
    with pytest.raises(UserError, match=r"onnx_int8: the export holds no model\.onnx\. Set export\.onnx: true"):
        converted(paths)


@pytest.mark.parametrize("names", [["onnx_int4"], ["onnx_int8", "onnx_int8"]])
def test_formats_are_known_and_stand_once(names):
    with pytest.raises(ValueError, match=r"any of .*litert, onnx, onnx_int8|each format once"):
        ConvertParams(formats=names, parity_rows=1, parity_atol=1e-4, max_metric_loss=0.0)


@pytest.mark.parametrize(
    ("config", "files", "why"),
    [
        ({"architectures": ["RobertaForSequenceClassification"]}, ["model.safetensors"], "a RobertaForSequence"),
        (
            {"architectures": ["BertForSequenceClassification"]},
            ["base_model/model.safetensors"],
            "a prompt or a prefix",
        ),
        (
            {"architectures": ["BertForSequenceClassification"], "hidden_act": "mish"},
            ["model.safetensors"],
            "hidden_act 'mish'",
        ),
        ({"architectures": ["BertForSequenceClassification"], "hidden_act": "gelu"}, ["model.safetensors"], ""),
        ({"architectures": ["GPT2Model"]}, ["model.safetensors"], "a GPT2Model"),
    ],
)
def test_tensorflow_says_what_it_can_not_build(config, files, why):
    found = formats.load("tensorflow").refusal(config, files)
    assert found.startswith(why) if why else found == ""
    if "GPT2" in why:
        assert formats.load("litert").refusal(config, files).startswith(why)


def needs(name: str) -> None:
    """Skip where the environment of a format has not been built; `make test-all` builds it first."""
    try:
        runtime.python_of(name)
    except UserError as error:
        pytest.skip(str(error))


def script(name: str, text: str, *arguments: str) -> Any:
    """What a program prints as JSON that runs in a format's environment, with nothing of ours on its path."""
    done = subprocess.run(
        [str(runtime.python_of(name)), "-I", "-c", text, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("act", "eps"), [("gelu", 1e-12), ("gelu", 1e-3), ("gelu_new", 1e-6), ("relu", 1e-12), ("silu", 1e-5)]
)
def test_tensorflow_gives_the_logits_whatever_the_activation_and_eps(tiny_model, tmp_path, act, eps):
    needs("tensorflow")
    tuned = tuned_model(tmp_path / "tuned", tiny_model, hidden_act=act, layer_norm_eps=eps)
    paths = project(tmp_path / "project", tuned, onnx=False)
    found = converted(paths, PARAMS.model_copy(update={"formats": ["tensorflow"]})).formats["tensorflow"]
    assert found.max_abs_difference <= 1e-4 and found.converted == found.tuned
    assert len({tuple(shape) for shape in found.shapes}) >= 4


@pytest.mark.heavy
@pytest.mark.parametrize("wrong", [{"hidden_act": "gelu_new"}, {"layer_norm_eps": 1e-5}])
def test_the_silent_faults_of_other_ports_would_be_found(tiny_model, tmp_path, wrong):
    """The approximate GELU, or Transformers' default eps in place of the model's own."""
    from tunewright.compute import open_tuned, read_tokens

    needs("tensorflow")
    right = {"hidden_act": "gelu", "layer_norm_eps": 1e-3}
    tuned = tuned_model(tmp_path / "tuned", tiny_model, **right)
    paths = project(tmp_path / "project", tuned, onnx=False)
    ported = tuned_model(tmp_path / "ported", tiny_model, **(right | wrong))
    (tmp_path / "out").mkdir()
    runtime.write("tensorflow", ported, tmp_path / "out", MAX_LENGTH)
    rows = read_tokens(paths.tokens / "test.arrow").drop_columns(["row_id"]).to_pylist()
    batches = compared_batches(open_tuned(TASK, tuned).eval(), TASK, rows)
    with runtime.Runtime("tensorflow", tmp_path / "out", 1) as opened:
        found = parity(opened, batches)
    with pytest.raises(UserError, match=r"the logits of tensorflow are .* away .* at most convert.parity_atol: 0.0001"):
        convert._check_logits("tensorflow", found, PARAMS)


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["tensorflow", "litert"])
@pytest.mark.parametrize("kind", ["multi_label_classification", "text_regression", "token_classification"])
def test_other_jobs_of_an_encoder(tiny_model, tmp_path, kind, name):
    needs(name)
    architecture, config, task, labels = "BertForSequenceClassification", {}, None, None
    if kind == "multi_label_classification":
        task = multi_label_classification.Task(multi_label_classification.TaskParams(type=kind, labels=LABELS))
        labels = [sorted({LABELS[row % 3], LABELS[row % 2]}, key=LABELS.index) for row in range(len(TEXTS))]
        config = {"problem_type": kind}
    elif kind == "text_regression":
        task = text_regression.Task(text_regression.TaskParams(type=kind))
        labels = [float(len(text)) for text in TEXTS]
        config = {"id2label": {0: "LABEL_0"}, "label2id": {"LABEL_0": 0}, "problem_type": "regression"}
    else:
        names = ["O", "B-film", "I-film"]
        task = token_classification.Task(token_classification.TaskParams(type=kind, labels=names))
        labels = [[names[at % 3 if at % 3 != 2 else 0] for at in range(len(text.split(" ")))] for text in TEXTS]
        architecture = "BertForTokenClassification"
        config = {"id2label": dict(enumerate(names)), "label2id": {one: at for at, one in enumerate(names)}}
    tuned = tuned_model(tmp_path / "tuned", tiny_model, architecture, **config)
    paths = project(tmp_path / "project", tuned, task, labels, onnx=False)
    found = converted(paths, PARAMS.model_copy(update={"formats": [name]}), task).formats[name]
    assert found.max_abs_difference <= 1e-4
    assert found.converted == pytest.approx(found.tuned, rel=1e-4)


@pytest.mark.heavy
def test_litert_gives_the_logits_at_each_of_its_lengths(tuned, tmp_path):
    needs("litert")
    paths = project(tmp_path, tuned, onnx=False)
    asked = PARAMS.model_copy(update={"formats": ["litert"]})
    report = run(paths, asked, TASK, seed=1, num_threads=1, max_length=MAX_LENGTH, evaluate=EVALUATE)
    found = report.formats["litert"]
    assert found.max_abs_difference <= 1e-4 and found.converted == found.tuned
    assert formats.load("litert").lengths(128) == [32, 128] and formats.load("litert").lengths(40) == [40]


TRAIN = """
import json, sys
import numpy as np, tensorflow as tf
folder, batch, again = sys.argv[1:]
given = np.load(batch)
ids, mask, labels = (tf.constant(given[name], tf.int32) for name in ("input_ids", "attention_mask", "labels"))
model = tf.saved_model.load(folder)
step, serve = model.signatures["train_step"], model.signatures["serve"]
rate = tf.constant(float(given["learning_rate"]))
first = step(input_ids=ids, attention_mask=mask, labels=labels, learning_rate=rate)["loss"]
after_one = serve(input_ids=ids, attention_mask=mask)["logits"].numpy().tolist()
losses = [float(first)]
for _ in range(60):
    losses.append(float(step(input_ids=ids, attention_mask=mask, labels=labels, learning_rate=10 * rate)["loss"]))
with tf.GradientTape() as tape:
    loss = model.loss(ids, mask, labels)
variables = list(model.weights.values())
gradients = [one for one in tape.gradient(loss, variables)]
tf.keras.optimizers.Adam(1e-3).apply_gradients(
    [(tf.convert_to_tensor(one), to) for one, to in zip(gradients, variables) if one is not None])
losses.append(float(model.loss(ids, mask, labels)))
tf.saved_model.save(model, again, signatures=dict(model.signatures))
logits = serve(input_ids=ids, attention_mask=mask)["logits"].numpy().tolist()
print(json.dumps({"losses": losses, "after_one": after_one, "logits": logits}))
"""
READ = """
import json, sys
import numpy as np, tensorflow as tf
given = np.load(sys.argv[2])
model = tf.saved_model.load(sys.argv[1])
assert "keras_hub" not in sys.modules  # it needs TensorFlow and nothing else
asked = {name: tf.constant(given[name], tf.int32) for name in ("input_ids", "attention_mask")}
print(json.dumps(model.signatures["serve"](**asked)["logits"].numpy().tolist()))
"""


@pytest.mark.heavy
def test_training_goes_on_in_tensorflow_as_in_pytorch(tiny_model, tmp_path):
    """In a fresh process that has TensorFlow and the SavedModel and nothing else: a step is PyTorch's own step, more
    steps lower the loss, another optimizer goes on from there, and what it saved is read by a third process."""
    import numpy as np
    import torch

    from tunewright.compute import open_tuned, read_tokens

    needs("tensorflow")
    tuned = tuned_model(tmp_path / "tuned", tiny_model, initializer_range=0.1)
    paths = project(tmp_path / "project", tuned, onnx=False)
    converted(paths, PARAMS.model_copy(update={"formats": ["tensorflow"]}))
    rows = read_tokens(paths.tokens / "test.arrow").drop_columns(["row_id"]).to_pylist()[:16]
    batch = {name: values.numpy() for name, values in TASK.collate(rows, 0).items()}
    np.savez(tmp_path / "batch.npz", learning_rate=0.006, **batch)

    model = open_tuned(TASK, tuned).eval()
    inputs = {name: torch.from_numpy(values) for name, values in batch.items()}
    loss = model(**inputs).loss
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.006).step()
    inputs.pop("labels")
    with torch.inference_mode():
        expected = model(**inputs).logits.numpy()

    folder, again = paths.converted / "tensorflow/saved_model", tmp_path / "again"
    found = script("tensorflow", TRAIN, str(folder), str(tmp_path / "batch.npz"), str(again))
    assert found["losses"][0] == pytest.approx(loss.item(), abs=1e-5)
    assert np.abs(np.array(found["after_one"]) - expected).max() <= 1e-4
    assert found["losses"][60] < found["losses"][0] - 0.03 and found["losses"][61] < found["losses"][60]
    read = script("tensorflow", READ, str(again), str(tmp_path / "batch.npz"))
    assert np.abs(np.array(read) - np.array(found["logits"])).max() <= 1e-6
