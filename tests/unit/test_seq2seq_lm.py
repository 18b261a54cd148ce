"""Sequence to sequence: on a T5 of two layers, and on a pair made of a BERT of two layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stages import baseline, evaluate, evaluate_base, export
from stages.finetune import FinetunePaths, run
from tests.conftest import make_tiny_model, number_pairs
from tests.exported import passed
from tests.unit.test_finetune import LORA, params
from tunewright.compute import open_tuned, read_tokens, set_up
from tunewright.errors import UserError
from tunewright.evaluation import EvaluateParams, margin
from tunewright.files import read_parquet, sha256_tree, write_json, write_parquet
from tunewright.generation import GenerationParams
from tunewright.task import Predicting
from tunewright.task_types.seq2seq_lm import Task, TaskParams
from tunewright.tokenizer import open_tokenizer

TASK = Task(TaskParams(type="seq2seq_lm"))
PAIRS = number_pairs()
EVALUATE = EvaluateParams(
    per_device_eval_batch_size=16,
    bootstrap_samples=100,
    confidence_level=0.95,
    calibration_bins=5,
    length_slices=[],
    slice_columns=[],
)
BESIDE = ("card", "control", "threshold_policy")
"""What leaves with the model."""
HOW = Predicting(batch_size=16, seed=0, generation=GenerationParams(max_new_tokens=8))


def table(pairs: list[tuple[str, str]]) -> pa.Table:
    return pa.table(
        {
            "row_id": [f"row{at}" for at in range(len(pairs))],
            "text": [text for text, _ in pairs],
            "target": [target for _, target in pairs],
        }
    )


def splits() -> dict[str, pa.Table]:
    """Each word stands in train at both places; the pairs of words of the other splits do not stand there."""
    two = {pair: (at // 10 + at) % 10 for at, pair in enumerate(PAIRS[10:])}
    held = {"validation": 3, "test": 7}
    found = {split: table([pair for pair, kind in two.items() if kind == at]) for split, at in held.items()}
    return {"train": table([pair for pair in PAIRS if two.get(pair) not in held.values()]), **found}


def write_tokens(folder: Path, model: Path, rows: dict[str, pa.Table]) -> None:
    folder.mkdir()
    for split, found in rows.items():
        encoded = TASK.encode(found, open_tokenizer(model), 32)
        columns = {name: encoded[name] for name in ("input_ids", "labels", "bytes")}
        lengths = [len(ids) for ids in encoded["input_ids"]]
        tokens = pa.table({"row_id": found["row_id"], **columns, "length": lengths})
        with pa.OSFile(str(folder / f"{split}.arrow"), "wb") as sink, pa.ipc.new_stream(sink, tokens.schema) as out:
            out.write_table(tokens)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT whose tokenizer knows the words of `number_pairs`."""
    folder = tmp_path_factory.mktemp("tiny_bert") / "model"
    make_tiny_model(folder, [text for pair in PAIRS for text in pair] * 2)
    return folder


@pytest.fixture(params=["t5", "pair"])
def base(request, tmp_path, tiny_encoder_decoder, tiny_bert, monkeypatch) -> Path:
    """The folder of a base model, with tokens of its own tokenizer beside it."""
    monkeypatch.chdir(tmp_path)
    Path("base").symlink_to(tiny_encoder_decoder if request.param == "t5" else tiny_bert)
    write_tokens(Path("tokens"), Path("base"), splits())
    write_json(Path("features/features.json"), {"applies": False})
    return Path("base")


def stage_paths(kind: type[Any], **changes: str) -> Any:
    """Every path of a stage under its own name, in the working folder."""
    return kind(**{name: Path(changes.get(name, name)) for name in kind.model_fields})


def finetune(**changes: Any) -> Any:
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    paths = stage_paths(FinetunePaths, base_model="base", tuned_model="tuned")
    short = {"max_steps": 2, "eval_steps": 2, "logging_steps": 1}
    return run(paths, params(**{**quiet, **short, **changes}), TASK, seed=1, num_threads=1)


def values(predictions: pa.Table) -> dict[str, float]:
    once = np.ones((1, predictions.num_rows))
    return {name: float(found(once)[0]) for name, found in TASK.statistics(predictions, 10).items()}


# --- rows → model inputs


def test_a_target_ends_with_the_token_that_ends_a_text(tiny_encoder_decoder):
    tokenizer = open_tokenizer(tiny_encoder_decoder)
    task = Task(TaskParams(type="seq2seq_lm", prompt_template="say {text}", max_target_length=3))
    encoded = task.encode(table([("two", "deux"), ("two {one} four", "deux un zéro")]), tokenizer, max_length=32)
    decode = tokenizer.backend.decode
    assert [decode(ids) for ids in encoded["input_ids"]] == [" say two", " say two {one} four"]
    assert [decode(ids) for ids in encoded["labels"]] == [" deux", " deux un"]
    assert [ids[-1] for ids in encoded["labels"]] == [tokenizer.id_of("eos_token")] * 2
    assert [len(ids) for ids in encoded["labels"]] == [2, 3] and encoded["target_tokens_before"] == [2, 4]
    assert encoded["bytes"] == [4, len(" deux un")]  # of what was kept, where it was cut


def test_a_bert_starts_from_cls_so_its_labels_do_not_hold_it(tiny_bert):
    from transformers import AutoTokenizer

    encoded = TASK.encode(table(PAIRS), open_tokenizer(tiny_bert), max_length=32)
    theirs = AutoTokenizer.from_pretrained(tiny_bert)
    assert encoded["labels"] == [theirs(target)["input_ids"][1:] for _, target in PAIRS]
    assert encoded["input_ids"] == theirs([text for text, _ in PAIRS])["input_ids"]
    assert encoded["target_tokens_before"] == [len(ids) for ids in encoded["labels"]]
    task = Task(TaskParams(type="seq2seq_lm", max_target_length=2))
    cut = task.encode(table([PAIRS[-1]]), open_tokenizer(tiny_bert), max_length=32)["labels"]
    assert cut == [[encoded["labels"][-1][0], theirs.sep_token_id]]


def test_a_tokenizer_that_adds_no_end_gets_it_and_one_that_has_none_is_refused(tiny_encoder_decoder):
    from tokenizers import processors

    tokenizer = open_tokenizer(tiny_encoder_decoder)
    tokenizer.backend.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    task = Task(TaskParams(type="seq2seq_lm", max_target_length=2))
    encoded = task.encode(table([("one two", "un deux")]), tokenizer, max_length=32)
    assert encoded["labels"] == [[tokenizer.backend.token_to_id("Ġun"), 1]] and encoded["target_tokens_before"] == [3]
    tokenizer.special_tokens.pop("eos_token")
    with pytest.raises(UserError, match="neither an eos_token nor a sep_token"):
        TASK.encode(table(PAIRS), tokenizer, max_length=32)


def test_a_batch_is_padded_on_both_sides():
    rows = [{"input_ids": [5, 6, 1], "labels": [7, 1]}, {"input_ids": [5, 1], "labels": [7, 8, 9, 1]}]
    batch = {name: found.tolist() for name, found in TASK.collate(rows, pad_token_id=0).items()}
    assert batch == {
        "input_ids": [[5, 6, 1], [5, 1, 0]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "labels": [[7, 1, -100, -100], [7, 8, 9, 1]],
    }


def test_a_template_has_one_place_for_the_text():
    for wrong in ("translate", "{text} {text}"):
        with pytest.raises(ValueError, match=r"a text with \{text\} in it once"):
            TaskParams(type="seq2seq_lm", prompt_template=wrong)


# --- the model


def test_a_pair_is_made_of_an_encoder_and_opens_again_as_it_was(tiny_bert, tmp_path):
    import torch

    set_up(1, 1)
    model = TASK.load_model(tiny_bert, {"hidden_dropout_prob": 0.3}).eval()
    config = model.config
    assert config.decoder.is_decoder and config.decoder.add_cross_attention and not config.encoder.is_decoder
    assert (config.decoder_start_token_id, config.eos_token_id, config.pad_token_id) == (2, 3, 0)
    assert [half.hidden_dropout_prob for half in (config.encoder, config.decoder)] == [0.3, 0.3]
    # Both start from the same weights, and share none of them; the decoder's output is tied to its embeddings.
    ours, theirs = (half.get_input_embeddings().weight for half in (model.encoder, model.decoder))
    assert torch.equal(ours, theirs) and ours is not theirs
    assert model.get_output_embeddings().weight is theirs
    model.save_pretrained(tmp_path / "saved")
    again = TASK.load_model(tmp_path / "saved", {"hidden_dropout_prob": 0.1}).eval()
    assert [half.hidden_dropout_prob for half in (again.config.encoder, again.config.decoder)] == [0.1, 0.1]
    assert again.get_output_embeddings().weight is again.decoder.get_input_embeddings().weight
    batch = TASK.collate([{"input_ids": [2, 9, 8, 3], "labels": [7, 3]}, {"input_ids": [2, 3], "labels": [3]}], 0)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, again(**batch).logits)
    assert again.generation_config.decoder_start_token_id == 2


def test_a_decoder_is_no_base_model(tmp_path):
    from transformers import GPT2Config

    GPT2Config(n_layer=1).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"the base model is of type gpt2. A decoder writes by task.type: instruction"):
        TASK.load_model(tmp_path, {})


WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "freeze": {"freeze_trainable_layers": 1},
    "head": {},
    "lora": LORA,
    "ia3": {},
    "prompt": {"num_virtual_tokens": 4},
    "prefix": {"num_virtual_tokens": 4},
}
OF_BERT = {"ia3_target_modules": ["key", "value", "output.dense"], "ia3_feedforward_modules": ["output.dense"]}


@pytest.mark.parametrize("way", WAYS)
def test_a_way_trains_and_what_is_kept_writes_as_it_reads(base, way, request):
    import torch

    is_t5 = "t5" in request.node.callspec.id
    extra = OF_BERT if way == "ia3" and not is_t5 else WAYS[way]
    if way == "head" and is_t5:
        with pytest.raises(UserError, match=r"nothing is new in a T5ForConditionalGeneration\. Take freeze"):
            finetune(finetuning_type=way, **extra)
        return
    report = finetune(finetuning_type=way, **extra)
    model = open_tuned(TASK, Path("tuned")).eval()
    rows, tokens = splits()["validation"], read_tokens(Path("tokens/validation.arrow"))
    tokenizer = open_tokenizer(base)
    found = TASK.predict(model, tokenizer, rows, tokens, HOW)
    # Training watched the same likelihood: the weights are those of the step that it kept.
    assert sum(found["nll"].to_pylist()) / sum(found["tokens"].to_pylist()) == pytest.approx(report.best_metric, 1e-5)
    # Each token written is the likeliest after those before it, as the same model reads them.
    for ids in tokens["input_ids"].to_pylist()[:3]:
        batch = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.int64)}
        with torch.no_grad():
            written = model.generate(**batch, max_new_tokens=5, do_sample=False)
            likeliest = model(**batch, decoder_input_ids=written[:, :-1]).logits.argmax(-1)
        assert written[0, 1:].tolist() == likeliest[0].tolist()


def test_embeddings_are_frozen_on_both_sides(base):
    report = finetune(freeze_embeddings=True)
    before, after = TASK.load_model(base, {}), TASK.load_model(Path("tuned"), {})
    for half in ("encoder", "decoder"):
        ours, theirs = (getattr(model, half).get_input_embeddings().weight for model in (before, after))
        assert (ours == theirs).all()
    assert report.trainable_parameters < report.parameters


def test_dropout_has_the_model_s_own_name(tiny_encoder_decoder, tiny_bert, tmp_path):
    from tunewright.tuning import dropout

    assert dropout(tiny_encoder_decoder, 0.2, None) == {"dropout_rate": 0.2}
    with pytest.raises(
        UserError, match=r"attention_probs_dropout_prob: found 0.1; a base model of type t5 has no such"
    ):
        dropout(tiny_encoder_decoder, 0.2, 0.1)
    TASK.load_model(tiny_bert, {}).save_pretrained(tmp_path / "saved")
    assert dropout(tmp_path / "saved", 0.2, 0.1) == {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.1}


# --- the loss


def test_two_batches_make_the_step_of_one_and_the_loss_is_the_model_s_own(base):
    import torch

    for split in ("train", "validation"):  # of targets that differ in length
        Path(f"tokens/{split}.arrow").unlink()
    Path("tokens/test.arrow").unlink()
    Path("tokens").rmdir()
    rows = table([*PAIRS[:4], *PAIRS[60:64]])
    write_tokens(Path("tokens"), base, {"train": rows, "validation": rows})
    plain = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 1, "eval_steps": 1, "max_grad_norm": 100.0}
    weights = []
    for size, accumulated in ((8, 1), (4, 2)):
        report = finetune(
            **plain, weight_decay=0.0, per_device_train_batch_size=size, gradient_accumulation_steps=accumulated
        )
        weights.append(torch.cat([found.flatten() for found in TASK.load_model(Path("tuned"), {}).parameters()]))
    assert (weights[0] - weights[1]).abs().max() < 1e-6
    set_up(1, 1)
    model = TASK.load_model(
        base,
        {"dropout_rate": 0.0}
        if "t5" in str(base.resolve())
        else {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    )
    batch = TASK.collate(read_tokens(Path("tokens/train.arrow")).to_pylist(), 0)
    model.train()
    assert report.history[0]["loss"] == pytest.approx(model(**batch).loss.item(), rel=1e-5)
    smoothed = finetune(**plain, weight_decay=0.0, label_smoothing_factor=0.1, per_device_train_batch_size=8)
    log_p = torch.log_softmax(model(**batch).logits, -1)
    known = batch["labels"] != -100
    of_labels = log_p.gather(-1, batch["labels"].where(known, 0)[..., None])[..., 0]
    by_hand = -(0.9 * of_labels + 0.1 * log_p.mean(-1))[known].mean()
    assert smoothed.history[0]["loss"] == pytest.approx(by_hand.item(), rel=1e-5)


def test_classes_of_a_vocabulary_have_no_weights(base):
    with pytest.raises(UserError, match="a language model's classes are its whole vocabulary"):
        finetune(class_weights="balanced")


# --- what it is worth


def test_a_t5_from_scratch_learns_to_translate_words(tmp_path, tiny_encoder_decoder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("base").symlink_to(tiny_encoder_decoder)
    rows = splits()
    write_tokens(Path("tokens"), Path("base"), rows)
    write_json(Path("features/features.json"), {"applies": False})
    finetune(max_steps=120, eval_steps=40, logging_steps=40, learning_rate=5e-3, per_device_train_batch_size=32)
    tokens, tokenizer = read_tokens(Path("tokens/test.arrow")), open_tokenizer(Path("base"))
    before, after = (
        values(TASK.predict(TASK.load_model(Path(folder), {}), tokenizer, rows["test"], tokens, HOW))
        for folder in ("base", "tuned")
    )
    assert tuple(after) == TASK.metric_names
    assert before["exact_match"] == 0 and after["exact_match"] >= 0.4
    assert after["chrf"] > before["chrf"] + 30 and after["rouge1"] > before["rouge1"] + 0.5
    assert after["perplexity"] < before["perplexity"] / 50 and after["bits_per_byte"] < before["bits_per_byte"] / 3


def test_predictions_hold_what_was_written_for_the_rows_that_were_asked_for(tiny_encoder_decoder, tmp_path):
    rows = table(PAIRS[:6])
    write_tokens(tmp_path / "tokens", tiny_encoder_decoder, {"test": rows})
    tokens, tokenizer = read_tokens(tmp_path / "tokens/test.arrow"), open_tokenizer(tiny_encoder_decoder)
    model = TASK.load_model(tiny_encoder_decoder, {})
    some = Predicting(batch_size=2, seed=0, generation=GenerationParams(max_new_tokens=4, max_rows=3))
    found = TASK.predict(model, tokenizer, rows, tokens, some)
    assert found["label"].to_pylist() == rows["target"].to_pylist()
    assert sum(text is not None for text in found["predicted"].to_pylist()) == 3
    assert None not in found["nll"].to_pylist() and found["bytes"].to_pylist()[:2] == [5, 2]  # zéro, un
    # Padding changes nothing.
    alone = TASK.predict(model, tokenizer, rows, tokens, Predicting(1, 0, some.generation))
    assert alone["predicted"] == found["predicted"]
    assert alone["nll"].to_pylist() == pytest.approx(found["nll"].to_pylist(), rel=1e-5)


def test_metrics_scores_and_details_by_hand():
    from sacrebleu import corpus_chrf

    found = pa.table(
        {
            "label": ["un deux trois quatre", "cinq", "six"],
            "predicted": ["un deux trois quatre", "", None],
            "nll": [2.0, 1.0, 3.0],
            "tokens": [5, 2, 2],
            "bytes": [20, 4, 3],
        }
    )
    assert values(found) == pytest.approx(
        {
            # Written: one row of two as expected, the other empty. BLEU and chrF: all n-grams are right, but too few.
            "chrf": corpus_chrf(["un deux trois quatre", ""], [["un deux trois quatre", "cinq"]]).score,
            "bleu": 100 * np.exp(1 - 5 / 4),
            "rouge1": 0.5,
            "rouge2": 0.5,
            "rougeL": 0.5,
            "exact_match": 0.5,
            "bits_per_byte": 6 / np.log(2) / 27,
            "perplexity": np.exp(6 / 9),
        }
    )
    scores = TASK.scores(found)
    assert scores[:2] == pytest.approx([100, 0]) and np.isnan(scores[2])
    assert TASK.details(found, 10) == {"written": 2, "empty": 1, "length_ratio": 20 / 24}
    assert TASK.examples(found, 5) == [1, 0]
    without = values(found.select(["label", "predicted"]))
    assert "perplexity" not in without and without["exact_match"] == 0.5


class Baselines:
    """The part of the section `baseline` that is read here."""

    ngram_range = (1, 2)
    min_df = 1
    sublinear_tf = True


@pytest.mark.parametrize(
    ("targets", "chosen", "answers"),
    [
        (["the red house. it is old", "green"], "the text itself", ["the red house. it is old", "green"]),
        (["the red house.", "green"], "its first sentence", ["the red house.", "green"]),
        (["la maison", "vert"], "the target of the most similar text of train", ["la maison", "green"]),
    ],
)
def test_the_baseline_is_the_best_on_validation_of_copy_first_sentence_and_the_most_similar(targets, chosen, answers):
    train = table([("a blue sea", "la mer"), ("the old red house", "la maison")])
    judged = table([("the red house. it is old", targets[0]), ("green", targets[1])])
    found = TASK.baseline({"train": train, "validation": judged, "test": judged}, Baselines, 0)
    assert found.name == chosen and found.details["chosen"]["answer"] == chosen
    assert [candidate["ngram_range"] for candidate in found.details["candidates"]] == [None, None, 1, 2]
    assert found.predictions["test"]["predicted"].to_pylist() == answers
    assert values(found.predictions["test"])["chrf"] == pytest.approx(found.details["chosen"]["validation_chrf"])
    copied = found.fixed["copying the text"]
    assert copied["predicted"].to_pylist() == ["the red house. it is old", "green"]
    assert copied["label"].to_pylist() == targets


def test_copying_is_measured_on_test_where_another_answer_is_the_baseline(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = [("a blue sea", "la mer bleue"), ("the old red house", "la vieille maison rouge")]
    judged = [("the red house", "la maison rouge"), ("a sea", "la mer"), ("restaurant", "restaurant")]
    for split, pairs in {"train": train, "validation": judged[:2], "test": judged}.items():
        write_parquet(table(pairs), Path(f"prepared/{split}.parquet"))
    write_json(Path("data_passed"), {"prepared": sha256_tree(Path("prepared"))})
    found = baseline.run(
        stage_paths(baseline.BaselinePaths), Baselines, TASK, 1, bootstrap_samples=100, calibration_bins=5,
        confidence_level=0.95,
    )  # fmt: skip
    assert found.name == "the target of the most similar text of train"
    copied = found.fixed["copying the text"]
    assert copied.rows == 3 and list(copied.metrics) == list(found.splits["test"].metrics)
    exact = copied.metrics["exact_match"]
    assert exact.value == pytest.approx(1 / 3) and exact.low < exact.value < exact.high
    by_hand = values(pa.table({"label": [fr for _, fr in judged], "predicted": [en for en, _ in judged]}))
    assert {name: one.value for name, one in copied.metrics.items()} == pytest.approx(by_hand)


@pytest.mark.heavy
def test_the_stages_after_finetune_measure_and_export_what_writes(base):
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    rows = splits()
    for split, found in rows.items():
        write_parquet(found, Path(f"prepared/{split}.parquet"))
    finetune()
    write_json(Path("data_passed"), {"prepared": sha256_tree(Path("prepared"))})
    seed = {"seed": 1, "num_threads": 1}
    opponent = baseline.run(
        stage_paths(baseline.BaselinePaths), Baselines, TASK, 1, bootstrap_samples=100, calibration_bins=5,
        confidence_level=0.95,
    )  # fmt: skip
    names = {"base_model": "base", "tuned_model": "tuned"}
    before = evaluate_base.run(stage_paths(evaluate_base.EvaluateBasePaths, **names), EVALUATE, TASK, **seed)
    found = evaluate.run(stage_paths(evaluate.EvaluatePaths, **names), EVALUATE, TASK, **seed, privacy=None)
    assert list(found.splits["test"].metrics) == list(before.splits["test"].metrics) == list(TASK.metric_names)
    assert found.metric == "chrf" and set(opponent.splits["test"].metrics) == set(TASK.metric_names[:-2])
    chrf = [report.splits["test"].metrics["chrf"].value for report in (found, before, opponent)]
    assert found.margin_over_base.value == pytest.approx(chrf[0] - chrf[1])
    assert found.margin_over_baseline.value == pytest.approx(chrf[0] - chrf[2])
    found.write(Path("evaluate_report"))
    for name in ("card/card.json", "control", "threshold_policy"):
        write_json(Path(name), {"facts": {}} if name.startswith("card") else {})
    passed(Path("model_passed"), model=Path("tuned"), **{name: Path(name) for name in BESIDE})
    report = export.run(
        stage_paths(export.ExportPaths, **names),
        export.ExportParams(onnx=False, opset_version=18, parity_rows=4, parity_atol=1e-4),
        TASK,
        **seed,
        evaluate=EVALUATE,
    )
    proven = report.forms["safetensors"]
    assert proven.max_abs_difference < 1e-5 and proven.metric == "bits_per_byte"
    assert proven.exported == pytest.approx(found.splits["test"].metrics["bits_per_byte"].value, rel=1e-6)
    # Plain Transformers writes what was written here, without being told how.
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained("export"), AutoTokenizer.from_pretrained("export")
    ours = read_parquet(Path("predictions")).slice(rows["validation"].num_rows)["predicted"].to_pylist()
    theirs = model.generate(**tokenizer(rows["test"]["text"].to_pylist(), return_tensors="pt", padding=True))
    decoded = tokenizer.batch_decode(theirs, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert [text.split() for text in decoded] == [text.split() for text in ours]


def test_a_margin_is_over_the_rows_that_both_wrote():
    ours = pa.table({"label": ["un", "deux", "trois"], "predicted": ["un", None, "trois"]})
    theirs = pa.table({"label": ["un", "deux", "trois"], "predicted": ["un", "deux", None]})
    found = margin(TASK, ours, theirs, EVALUATE, seed=0)  # the first row alone, where both are right
    assert (found.low, found.value, found.high) == (0, 0, 0)
    assert margin(TASK, ours, ours.set_column(1, "predicted", pa.array(["", "", ""])), EVALUATE, 0).value == (
        pytest.approx(100)
    )
