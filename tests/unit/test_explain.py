"""Explanations of a tiny classifier that has learned one thing: "wonderful" is good, "dreadful" is bad."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from stages.explain import MIN_ROWS, ExplainParams, ExplainPaths, ExplainReport, run
from tests.conftest import REPOSITORY, number_pairs
from tunewright.compute import open_tuned, read_tokens
from tunewright.files import read_parquet, sha256_file, sha256_tree, write_parquet
from tunewright.predictions import with_rows, write_predictions
from tunewright.privacy import PrivacyParams
from tunewright.task import Predicting, TaskType
from tunewright.task_types import (
    causal_lm,
    instruction,
    multi_label_classification,
    seq2seq_lm,
    text_classification,
    text_regression,
    token_classification,
)
from tunewright.tokenizer import open_tokenizer, token_table

LABELS = ["bad", "good"]
TASK = text_classification.Task(text_classification.TaskParams(type="text_classification", labels=LABELS))
FILLER = ["the", "film", "was", "a", "long", "story", "about", "ships", "and", "rain", "see", "it"]
DECISIVE = {"good": "wonderful", "bad": "dreadful"}

PARAMS = ExplainParams(
    enabled=True,
    max_rows=40,
    max_examples=3,
    n_steps=16,
    deletion_fractions=[0.2, 0.5],
    min_word_rows=3,
    max_top_words=4,
    max_train_rows=100,
    max_neighbours=2,
)
OFF = dict.fromkeys(("email", "phone", "credit_card", "iban", "ip_address", "us_ssn", "secret"), "off")
PRIVACY = PrivacyParams.model_validate({**OFF, "phone_regions": ["US"], "patterns": {}})


def texts(rows: int, first: int) -> list[tuple[str, str]]:
    """Rows of five words of filler, with the decisive one among them."""
    found = []
    for at in range(first, first + rows):
        label = LABELS[at % 2]
        words = random.Random(at // 2).choices(FILLER, k=5)  # the same for both labels
        words.insert(at // 2 % 6, DECISIVE[label])
        found.append((" ".join(words), label))
    return found


TRAIN, TEST = texts(48, 0), texts(36, 100)


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = [*special, *FILLER, "wonder", "##ful", "dread", "<", ">", "/", "script", "@", ".", "x", "y", "0"]
    places = {word: at for at, word in enumerate(vocabulary)}
    backend = Tokenizer(models.WordPiece(places, unk_token="[UNK]"))  # noqa: S106
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a BERT of one layer that was trained on TRAIN until it is right everywhere."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("explained")
    save_tokenizer(folder)
    tokenizer = open_tokenizer(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=tokenizer.backend.get_vocab_size(),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(LABELS)),
        pad_token_id=0,
    )
    network = BertForSequenceClassification(config)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    table = token_table(TASK, rows_of("train", TRAIN), tokenizer, 32).table.to_pylist()
    batch = TASK.collate(table, 0)
    for _ in range(60):
        optimizer.zero_grad()
        output = network(**batch)
        output.loss.backward()
        optimizer.step()
    assert (output.logits.argmax(dim=-1) == batch["labels"]).all()
    network.save_pretrained(folder)
    return folder


def rows_of(split: str, rows: list[tuple[str, Any]], column: str = "label") -> pa.Table:
    found = [text for text, _ in rows], [value for _, value in rows]
    ids = [f"{split}-{at}" for at in range(len(rows))]
    return pa.table({"row_id": ids, "text": found[0], column: found[1]})


def lay_out(
    folder: Path, model: Path, task: TaskType, train: pa.Table, test: pa.Table, predicted: pa.Table | None = None
) -> ExplainPaths:
    """The files that the stage reads, as the stages before it write them."""
    paths = ExplainPaths(
        tuned_model=model,
        tokens=folder / "tokens",
        prepared=folder / "prepared",
        predictions=folder / "predictions.parquet",
        explain_page=folder / "explain.html",
        explain_plots=folder / "plots",
    )
    tokenizer = open_tokenizer(model)
    paths.tokens.mkdir(exist_ok=True)
    for split, rows in (("train", train), ("test", test)):
        write_parquet(rows, paths.prepared / f"{split}.parquet")
        table = token_table(task, rows, tokenizer, 32).table
        with pa.ipc.new_stream(str(paths.tokens / f"{split}.arrow"), table.schema) as stream:
            stream.write_table(table)
    if predicted is None:
        tokens = read_tokens(paths.tokens / "test.arrow")
        predicted = task.predict(open_tuned(task, model), tokenizer, test, tokens, Predicting(8, 0))
    write_predictions({"test": with_rows(predicted, test, "test")}, paths.predictions)
    return paths


def explain(paths: ExplainPaths, task: TaskType = TASK, **changes: Any) -> ExplainReport:
    return run(
        paths,
        ExplainParams.model_validate(PARAMS.model_dump() | changes),
        task,
        seed=1,
        num_threads=1,
        samples=200,
        confidence_level=0.95,
        privacy=PRIVACY,
    )


@pytest.fixture
def paths(tmp_path: Path, model: Path) -> ExplainPaths:
    return lay_out(tmp_path, model, TASK, rows_of("train", TRAIN), rows_of("test", TEST))


def test_the_planted_word_is_what_counts(paths: ExplainPaths) -> None:
    report = explain(paths)
    assert report.applies and report.rows is not None and report.rows.rows_kept == len(TEST)
    assert report.deletion is not None and report.convergence is not None
    deletion = report.deletion
    # Of six words two are taken out, the decisive one first; at random it is one of them in a third of the cases.
    assert deletion.fractions == [0.0, 0.2, 0.5]
    assert deletion.top[0] == deletion.random[0] > 0.9
    assert deletion.top[1] < deletion.random[1] - 0.1
    assert deletion.area.low > 0 and deletion.area.low <= deletion.area.value <= deletion.area.high
    # The vectors of this tiny model are small, so that its layer norms bend sharply beside the baseline.
    assert [(found.verdict, found.rule) for found in report.findings] == [
        ("warn", "explain: convergence"),
        ("pass", "explain: deletion"),
    ]
    found = {top.word: top for top in report.top_words["good"]}
    # A word of two pieces. What speaks for "bad" is mostly that it is not there.
    assert len(found) == 4 and found["wonderful"].rows == len(TEST) // 2
    assert found["wonderful"].attribution > 0
    assert report.errors == []
    assert len(report.examples) == 3
    for example in report.examples:
        assert example.predicted == example.label == example.explained
        if example.label == "good":
            assert next(word for word in example.words if word.text == "wonderful").attribution > 0
        total = sum(word.attribution for word in example.words)
        assert total == pytest.approx(example.value - example.baseline, abs=example.delta + 1e-3)
    assert report.convergence.mean > 0.1 * report.convergence.mean_difference
    lines = (paths.explain_plots / "deletion.csv").read_text().splitlines()
    assert lines[0] == '"fraction","top","random"' and len(lines) == 4
    assert [float(value) for value in lines[2].split(",")] == [0.2, deletion.top[1], deletion.random[1]]


def test_an_error_and_its_neighbours(tmp_path: Path, model: Path) -> None:
    """A row that is labelled wrongly, and in train its own text: nothing is nearer to it."""
    wrong = ("the film was wonderful rain", "bad")
    train = [*TRAIN, (wrong[0], "good"), ("see it", "good")]
    report = explain(
        lay_out(tmp_path, model, TASK, rows_of("train", train), rows_of("test", [*TEST[:4], wrong])), max_rows=2
    )
    assert report.rows is not None and report.rows.model_dump() == {
        "rows_in": 5,
        "rows_kept": 2,
        "dropped": {"not_drawn": 3},
    }
    assert report.findings[1].verdict == "insufficient" and MIN_ROWS > 2
    (error,) = report.errors
    assert (error.row_id, error.label, error.predicted) == ("test-4", "bad", "good")
    assert next(word for word in error.words if word.text == "wonderful").attribution > 0
    assert len(error.neighbours) == 2
    nearest = error.neighbours[0]
    assert (nearest.row_id, nearest.label, nearest.text) == ("train-48", "good", wrong[0])
    assert nearest.cosine == pytest.approx(1, abs=1e-3)
    assert nearest.cosine > error.neighbours[1].cosine
    page = (tmp_path / "explain.html").read_text(encoding="utf-8")
    assert "train-48" in page and "The worst errors" in page


def test_without_neighbours(tmp_path: Path, model: Path) -> None:
    wrong = [("the film was wonderful rain", "bad"), *TEST[:2]]
    laid = lay_out(tmp_path, model, TASK, rows_of("train", TRAIN), rows_of("test", wrong))
    assert [error.neighbours for error in explain(laid, max_train_rows=0).errors] == [[]]
    assert explain(laid, max_examples=0).errors == []


def test_what_a_text_holds_is_escaped_and_personal_values_are_not_shown(tmp_path: Path, model: Path) -> None:
    rows = [("<script>x</script> wonderful a@x.org film", "bad"), *TEST[:3]]
    laid = lay_out(tmp_path, model, TASK, rows_of("train", rows), rows_of("test", rows))
    report = explain(laid)
    page = laid.explain_page.read_text(encoding="utf-8")
    assert "<script" not in page.lower() and "javascript" not in page
    assert "script" in page and "&lt;" in page
    written = json.dumps(report.model_dump(mode="json"), ensure_ascii=False)
    for shown in (page, written):
        assert "x.org" not in shown and "a@" not in shown and "[EMAIL_1]" in shown
    (error,) = report.errors
    assert [word.text for word in error.words if "EMAIL" in word.text] == ["[EMAIL_1]"]
    assert error.neighbours[0].text.endswith("wonderful [EMAIL_1] film")
    for outside in ("http://", "https://", "src=", "@import", "url("):
        assert outside not in page


def test_same_inputs_same_bytes(paths: ExplainPaths) -> None:
    first = explain(paths)
    written = sha256_file(paths.explain_page), sha256_tree(paths.explain_plots)
    assert explain(paths) == first
    assert (sha256_file(paths.explain_page), sha256_tree(paths.explain_plots)) == written


OFF_SCRIPT = """
import sys
from pathlib import Path
from stages.explain import ExplainParams, ExplainPaths, run
from tunewright.task_types.{module} import Task, TaskParams

paths = ExplainPaths(**{{name: Path({folder!r}) / name for name in ExplainPaths.model_fields}})
report = run(
    paths, ExplainParams.model_validate({params!r}), Task(TaskParams(**{task!r})),
    seed=0, num_threads=1, samples=200, confidence_level=0.95, privacy=None,
)
assert not report.applies and report.deletion is None and not report.findings
assert not {{"torch", "captum", "transformers"}} & set(sys.modules)
print(report.reason)
"""


@pytest.mark.parametrize(
    ("module", "task", "enabled", "reason"),
    [
        ("text_classification", {"type": "text_classification", "labels": LABELS}, False, "explain.enabled is false"),
        ("causal_lm", {"type": "causal_lm"}, True, "no one answer"),
        ("token_classification", {"type": "token_classification", "labels": ["O", "B-x"]}, True, "labels words"),
    ],
)
def test_where_it_does_not_apply_it_costs_nothing(
    tmp_path: Path, module: str, task: dict[str, Any], enabled: bool, reason: str
) -> None:
    script = OFF_SCRIPT.format(
        module=module, folder=str(tmp_path), params=PARAMS.model_dump() | {"enabled": enabled}, task=task
    )
    told = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert reason in told.stdout
    assert "Nothing was explained" in (tmp_path / "explain_page").read_text(encoding="utf-8")
    assert (tmp_path / "explain_plots/deletion.csv").read_text() == '"fraction","top","random"\n'
    assert causal_lm.Task and token_classification.Task  # both task types are there


def test_several_labels_and_numbers(tmp_path: Path, tiny_model: Path) -> None:
    several = multi_label_classification.Task(
        multi_label_classification.TaskParams(type="multi_label_classification", labels=["a", "b", "c"])
    )
    rows = [("A movie that is full of love", ["a"]), ("Dull.", []), ("Too long, and too loud", ["a", "b"])]
    (tmp_path / "several").mkdir()
    report = explain(
        lay_out(tmp_path / "several", tiny_model, several, rows_of("train", rows), rows_of("test", rows)), several
    )
    assert report.deletion is not None and report.deletion.measure == "probability of the likeliest label"
    assert all(example.explained in "abc" for example in report.examples)

    number = text_regression.Task(text_regression.TaskParams(type="text_regression", label_scale=10.0))
    numbered = [(text, float(at)) for at, (text, _) in enumerate(rows)]
    (tmp_path / "number").mkdir()
    report = explain(
        lay_out(tmp_path / "number", tiny_model, number, rows_of("train", numbered), rows_of("test", numbered)), number
    )
    assert report.deletion is not None and report.top_words == {}
    assert report.deletion.top[0] == report.deletion.random[0] == 0.0
    assert max(report.deletion.top[1:]) < 0  # minus a change
    assert len(report.errors) == 3 and report.errors[0].explained == "the number"


def test_what_a_decoder_wrote(tmp_path: Path, tiny_decoder: Path) -> None:
    task = instruction.Task(instruction.TaskParams(type="instruction", prompt_template="Review: {text}\nIs it good?"))
    rows = rows_of("test", [("A wonderful film", "yes"), ("So dull", "no"), ("Long", "no"), ("x", "y")], "target")
    predicted = pa.table(
        {
            "nll": [1.0] * 4,
            "tokens": [1] * 4,
            "bytes": [3] * 4,
            "label": rows["target"],
            "predicted": pa.array(["yes it is", "no", None, " "], pa.string()),
        }
    )
    report = explain(lay_out(tmp_path, tiny_decoder, task, rows, rows, predicted), task, n_steps=64)
    assert report.rows is not None and report.rows.rows_kept == 2  # two have an answer
    assert report.errors == [] and {example.row_id for example in report.examples} == {"test-0", "test-1"}
    first = next(example for example in report.examples if example.row_id == "test-0")
    assert first.predicted == "yes it is" and first.explained == "the answer"
    assert " ".join(word.text for word in first.words).startswith("Review : A wonderful film")
    assert first.value < 0 and first.delta < 0.01
    total = sum(word.attribution for word in first.words)
    assert total == pytest.approx(first.value - first.baseline, abs=0.02)
    assert report.deletion is not None and 0 < report.deletion.top[0] < 1
    assert report.deletion.measure.startswith("probability of a token of the answer")


def test_what_an_encoder_decoder_wrote(tmp_path: Path, tiny_encoder_decoder: Path) -> None:
    task = seq2seq_lm.Task(seq2seq_lm.TaskParams(type="seq2seq_lm", prompt_template="to French: {text}"))
    rows = rows_of("test", number_pairs()[20:24], "target")
    predicted = pa.table({"label": rows["target"], "predicted": ["un deux", "trois", "", "six six"]})
    report = explain(lay_out(tmp_path, tiny_encoder_decoder, task, rows, rows, predicted), task, n_steps=64)
    assert report.rows is not None and report.rows.rows_kept == 3
    for example in report.examples:
        shown = [word.text for word in example.words]
        assert shown[-1] == "</s>" and example.words[-1].attribution == 0
        assert shown[-3:-1] == rows["text"][int(example.row_id[-1])].as_py().split()
        assert any(word.attribution for word in example.words)


def test_nothing_was_written(tmp_path: Path, tiny_encoder_decoder: Path) -> None:
    task = seq2seq_lm.Task(seq2seq_lm.TaskParams(type="seq2seq_lm"))
    rows = rows_of("test", number_pairs()[:2], "target")
    predicted = pa.table({"label": rows["target"], "predicted": pa.array([None, None], pa.string())})
    report = explain(lay_out(tmp_path, tiny_encoder_decoder, task, rows, rows, predicted), task)
    assert not report.applies and "no row of test" in report.reason
    assert read_parquet(tmp_path / "predictions.parquet").num_rows == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"deletion_fractions": [0.5, 0.2]},
        {"deletion_fractions": []},
        {"deletion_fractions": [0.0]},
        {"max_rows": 0},
        {"n_steps": 1},
        {"steps": 8},
    ],
)
def test_params_are_bounded(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ExplainParams.model_validate(PARAMS.model_dump() | wrong)
