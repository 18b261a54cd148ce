"""init_model: the fetched model unchanged, or a new one with a tokenizer of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError

from stages import fetch_model
from stages.fetch_model import FetchModelParams, FetchModelPaths
from stages.init_model import InitModelParams, InitModelPaths, check, run
from tests.conftest import reviews
from tests.unit.test_report import make_changed_page
from tunewright.errors import UserError
from tunewright.files import read_json, sha256_tree, write_json, write_parquet
from tunewright.task import TaskType
from tunewright.task_types import masked_lm, text_classification
from tunewright.tokenizer import open_tokenizer

MASKED = masked_lm.Task(masked_lm.TaskParams(type="masked_lm"))
CLASSIFIER = text_classification.Task(
    text_classification.TaskParams(type="text_classification", labels=["negative", "positive"])
)


class WithTarget(TaskType):
    """A job whose rows have a target too."""

    columns = ("text", "target")


SMALL: dict[str, dict[str, Any]] = {
    "bert": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 32,
    },
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32},
    "llama": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 32,
    },
    "t5": {"d_model": 16, "num_layers": 1, "num_heads": 2, "d_kv": 8, "d_ff": 16},
}
BERT_TOKENS = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
SPECIAL = {
    "bert": BERT_TOKENS,
    "gpt2": {"<|endoftext|>": 0},
    "llama": {"<|endoftext|>": 0},
    "t5": {"<pad>": 0, "</s>": 1, "<unk>": 2},
}
TEXTS = [line.split("\t")[2] for line in reviews(300).decode().splitlines()]
UNHEARD = "A fine film , isn't it ?  Übergrößen ﬁlm \U0001f600"


def write_rows(folder: Path, train: list[dict[str, str]], test: list[dict[str, str]]) -> None:
    """Rows of train and test, and the gate's pass for them."""
    for split, rows in (("train", train), ("validation", test), ("test", test)):
        table = pa.Table.from_pylist([{"row_id": str(number), **row} for number, row in enumerate(rows)])
        write_parquet(table, folder / f"prepared/{split}.parquet")
    write_json(folder / "passed", {"prepared": sha256_tree(folder / "prepared")})


@pytest.fixture
def paths(tmp_path: Path) -> InitModelPaths:
    (tmp_path / "fetched").mkdir()
    write_rows(tmp_path, [{"text": text} for text in TEXTS], [{"text": "Zyxomma zyxomma , a dragonfly"}] * 9)
    return InitModelPaths(
        fetched_model=tmp_path / "fetched",
        prepared=tmp_path / "prepared",
        data_passed=tmp_path / "passed",
        base_model=tmp_path / "base",
    )


def scratch(architecture: str, **changes: Any) -> InitModelParams:
    """Params of a small model."""
    asked = {
        "architecture": architecture,
        "config": SMALL.get(architecture, {}),
        "tokenizer": "wordpiece",
        "vocab_size": 400,
    }
    return InitModelParams.model_validate({"from_scratch": asked | changes})


@pytest.mark.parametrize("tokenizer", ["byte_level_bpe", "wordpiece", "unigram"])
@pytest.mark.parametrize("architecture", SMALL)
def test_every_tokenizer_for_every_architecture(architecture, tokenizer, paths):
    from transformers import AutoTokenizer

    task = MASKED if architecture == "bert" else CLASSIFIER
    report = run(paths, scratch(architecture, tokenizer=tokenizer), task, 1, None)
    made = sha256_tree(paths.base_model)
    assert run(paths, scratch(architecture, tokenizer=tokenizer), task, 1, None) == report
    assert sha256_tree(paths.base_model) == made == report.sha256
    assert report.characters == sum(map(len, TEXTS))
    assert report.vocab_size == 400

    ours, theirs = open_tokenizer(paths.base_model), AutoTokenizer.from_pretrained(paths.base_model)
    for text in (*TEXTS[:20], UNHEARD, "x", ""):
        assert ours.backend.encode(text).ids == theirs(text)["input_ids"]
    vocabulary = ours.backend.get_vocab()
    for token, number in SPECIAL[architecture].items():
        assert vocabulary[token] == number
    assert (ours.special_tokens, ours.pad_token_id) == (report.special_tokens, 0)
    ids = ours.backend.encode(TEXTS[0]).ids
    assert (ids[0] == 2) == (architecture == "bert")
    assert ids[-1] == {"bert": 3, "t5": 1}.get(architecture, ids[-1])
    assert not {ids[0], ids[-1]} & {0}

    # Twice in each text of test, nowhere in train.
    assert not any("zyxom" in piece.lower() for piece in vocabulary)
    config = read_json(paths.base_model / "config.json")
    assert config["vocab_size"] == 400
    ended = {"bert": None, "t5": 1}.get(architecture, 0)
    assert (config["pad_token_id"], config["eos_token_id"]) == (0, ended)
    if architecture == "t5":
        assert config["decoder_start_token_id"] == 0


def test_bytes_bring_every_text_back(paths):
    run(paths, scratch("gpt2", tokenizer="byte_level_bpe"), CLASSIFIER, 1, None)
    backend = open_tokenizer(paths.base_model).backend
    assert backend.decode(backend.encode(UNHEARD).ids) == UNHEARD


def test_the_parameters_are_counted_and_the_weights_are_the_seed_s(paths):
    from safetensors.numpy import load_file

    report = run(paths, scratch("bert"), MASKED, 1, None)
    # By hand: token, position and type embeddings with their norm; one layer; the head's dense layer, norm and bias.
    # Its decoder is the token embeddings.
    embeddings = (400 + 32 + 2) * 16 + 2 * 16
    layer = 4 * (16 * 16 + 16) + 2 * (16 * 16 + 16) + 2 * 2 * 16
    head = (16 * 16 + 16) + 2 * 16 + 400
    assert report.parameters == embeddings + layer + head
    assert (report.embedding_parameters, report.architecture, report.model_type) == (6400, "BertForMaskedLM", "bert")
    first = load_file(paths.base_model / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    assert abs(float(first.std()) - 0.02) < 0.002  # BERT's initializer_range
    run(paths, scratch("bert"), MASKED, 2, None)
    second = load_file(paths.base_model / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    assert (first != second).mean() > 0.99


def test_targets_are_trained_on_and_lowercase_loses_case(paths, tmp_path):
    write_rows(tmp_path, [{"text": "AAAA BBBB", "target": "quixotic quixotic"}] * 20, [{"text": "x", "target": "y"}])
    run(paths, scratch("t5", vocab_size=60, lowercase=True), WithTarget(CLASSIFIER.params), 1, None)
    vocabulary = open_tokenizer(paths.base_model).backend.get_vocab()
    assert {"quixotic", "aaaa"} <= set(vocabulary)
    assert "AAAA" not in vocabulary


def test_a_conversation_s_contents_are_trained_on_and_chatml_renders_it(paths, tmp_path):
    from transformers import AutoTokenizer

    text = "<|user|>\nIs the moon larger ?\n<|assistant|>\nNo , it is nearer ."
    write_rows(tmp_path, [{"text": text}] * 20, [{"text": text}])
    asked = scratch("llama", tokenizer="byte_level_bpe", vocab_size=320, chat_template="chatml", extra_ids=1)
    run(paths, asked, CLASSIFIER, 1, None)
    vocabulary = open_tokenizer(paths.base_model).backend.get_vocab()
    assert [vocabulary[token] for token in ("<extra_id_0>", "<|im_start|>", "<|im_end|>")] == [1, 2, 3]
    assert not any("assistant" in piece for piece in vocabulary)
    tokenizer = AutoTokenizer.from_pretrained(paths.base_model)
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "Yes"}], tokenize=False)
    assert rendered == "<|im_start|>user\nYes<|im_end|>\n"
    assert tokenizer("<|im_start|>")["input_ids"] == [2]


def test_a_fetched_model_is_copied_unchanged(tiny_model, paths):
    fetched = paths.model_copy(update={"fetched_model": tiny_model})
    report = run(fetched, InitModelParams(from_scratch=None), CLASSIFIER, 1, "./tiny")
    assert report.model_dump(exclude_defaults=True) == {"applies": False}
    assert sha256_tree(paths.base_model) == sha256_tree(tiny_model)
    weights = paths.base_model / "model.safetensors"
    assert weights.stat().st_nlink == 1  # a copy, whatever DVC does to the other


@pytest.mark.parametrize(
    ("architecture", "changes", "told"),
    [
        ("bert", {"config": {"hiden_size": 8}}, r"config\.hiden_size: unknown key .* Did you mean `hidden_size`\?"),
        ("gpt2", {"config": {"vocab_size": 8}}, r"config\.vocab_size: the tokenizer tells it"),
        ("t5", {"config": {"pad_token_id": 3}}, r"config\.pad_token_id: the tokenizer tells it"),
        ("bert", {"config": {"hidden_size": "wide"}}, r"config: bert refuses it: .*hidden_size"),
        ("brt", {}, r"found 'brt'; Transformers has no such model_type. Did you mean `bert`\?"),
        ("vit", {}, "found 'vit', which is no language model with a vocabulary of its own"),
        ("encoder-decoder", {}, "found 'encoder-decoder', which is no language model"),
        ("gpt2", {}, "gpt2 with this config can't be made for the task masked_lm: Unrecognized configuration class"),
        ("bert", {"config": {"hidden_size": 15}}, "bert with this config can't be made .* not a multiple"),
        ("bert", {"vocab_size": 30}, r"vocab_size: found 30; the special tokens and the single characters .* already"),
        (
            "bert",
            {"vocab_size": 30, "tokenizer": "unigram"},
            "vocab_size: found 30; SentencePiece can't",
        ),
    ],
)
def test_what_can_t_be_made_is_refused(architecture, changes, told, paths):
    with pytest.raises(UserError, match=told):
        run(paths, scratch(architecture, **changes), MASKED, 1, None)
    assert not paths.base_model.exists()


def test_bytes_need_room():
    with pytest.raises(ValidationError, match="at least 300 with byte_level_bpe"):
        scratch("gpt2", tokenizer="byte_level_bpe", vocab_size=299)


def test_check_names_it_before_anything_runs():
    assert check(scratch("bert"), None) == []
    assert check(InitModelParams(from_scratch=None), "./tiny") == []
    (both,) = check(scratch("bert"), "./tiny")
    (neither,) = check(InitModelParams(from_scratch=None), None)
    (unknown,) = check(scratch("bert", config={"layers": 2}), None)
    assert "Set one of them to null" in both
    assert "there is no base model" in neither
    assert "config.layers: unknown key" in unknown


def test_nothing_is_fetched_where_training_begins_from_scratch(tmp_path):
    FetchModelParams(model_name_or_path=None, model_revision=None, license=None)
    choice = tmp_path / "choice.json"
    write_json(choice, {"model_name_or_path": None, "model_revision": None, "license": None})
    paths = FetchModelPaths(model_source=tmp_path, model_choice=choice, fetched_model=tmp_path / "fetched")
    report = fetch_model.run(paths)
    assert report.model_dump(exclude_defaults=True) == {"applies": False}
    assert [file.name for file in (tmp_path / "fetched").iterdir()] == ["README.md"]


def test_the_page_tells_that_training_began_from_scratch(tmp_path):
    made = {
        "applies": True,
        "architecture": "BertForMaskedLM",
        "parameters": 1_273_480,
        "embedding_parameters": 640_000,
        "tokenizer": "byte_level_bpe",
        "vocab_size": 5000,
        "characters": 1_214_241,
        "sha256": "e" * 64,
    }
    page = make_changed_page(tmp_path, init_model=made, fetch_model={"applies": False, "license": None})
    assert "trained from scratch (BertForMaskedLM, 1,273,480 parameters)" in page.html
    assert "Base modelfrom scratch: new weights, 640,000 of them in the token embeddings" in page.rows
    assert "Its tokenizerbyte level bpe of 5,000 entries, trained on 1,214,241 characters of train" in page.rows
    assert "e" * 64 in page.html
    assert not any(row.startswith("Its licence") for row in page.rows)
