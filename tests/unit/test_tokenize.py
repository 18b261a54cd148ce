"""tokenize, on rows that were written by hand."""

import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from stages.tokenize import TokenizeParams, TokenizePaths, run
from tests.passing import let_through
from tunewright.compute import read_tokens
from tunewright.errors import UserError
from tunewright.files import write_json, write_parquet
from tunewright.task_types.text_classification import Task, TaskParams

TASK = Task(TaskParams(type="text_classification", labels=["negative", "positive"]))


def tokenized(folder: Path, tiny_model: Path, mitigated: pa.Table | None = None, **columns: pa.Array) -> pa.Table:
    """The training split's tokens, for two rows with these further columns."""
    rows = {"row_id": ["a", "b"], "text": ["a fine film", "dull"], "label": ["positive", "negative"], **columns}
    for split in ("train", "validation", "test"):
        write_parquet(pa.table(rows), folder / f"prepared/{split}.parquet")
    paths = TokenizePaths(
        prepared=folder / "prepared",
        training_weights=let_through(folder / "prepared", folder / "passed", mitigated),
        data_passed=folder / "passed",
        base_model=tiny_model,
        tokens=folder / "tokens",
        tokenize_plots=folder / "plots",
    )
    run(paths, TokenizeParams(max_length=16), TASK)
    return read_tokens(folder / "tokens/train.arrow")


def test_rows_that_are_weighed_keep_their_weights(tmp_path, tiny_model):
    assert tokenized(tmp_path, tiny_model).column_names == ["row_id", "input_ids", "labels", "length"]
    weighed = tokenized(tmp_path, tiny_model, sample_weight=pa.array([2, 1]))
    assert weighed.column("sample_weight").to_pylist() == [2.0, 1.0]
    assert weighed.column("labels").to_pylist() == [1, 0]


def test_what_was_mended_weighs_or_repeats_the_rows_of_train_alone(tmp_path, tiny_model):
    def mitigated(weight: list[float], copies: list[int]) -> pa.Table:
        return pa.table({"row_id": ["a", "b"], "weight": weight, "copies": copies})

    table = tokenized(tmp_path, tiny_model, mitigated([0.5, 1.5], [1, 1]), sample_weight=pa.array([2, 1]))
    assert table.column("sample_weight").to_pylist() == [1.0, 1.5]
    validation = read_tokens(tmp_path / "tokens/validation.arrow")
    assert validation.column("sample_weight").to_pylist() == [2.0, 1.0]
    table = tokenized(tmp_path, tiny_model, mitigated([1.0, 1.0], [0, 3]))
    assert table.column("row_id").to_pylist() == ["b", "b", "b"]
    assert "sample_weight" not in table.column_names
    with pytest.raises(UserError, match="other rows of train than in the prepared data"):
        tokenized(tmp_path, tiny_model, mitigated([0.5, 1.5], [1, 1]).take([1, 0]))


@pytest.mark.parametrize(
    ("config", "room"),
    [
        ({"model_type": "bert", "max_position_embeddings": 15}, 15),
        # A real RoBERTa has 514 rows, of which 512 can be used: numbers start behind that of the padding.
        ({"model_type": "roberta", "max_position_embeddings": 17, "pad_token_id": 1}, 15),
        ({"model_type": "gpt2", "n_positions": 15}, 15),
        ({"model_type": "encoder-decoder", "encoder": {"model_type": "bert", "max_position_embeddings": 15}}, 15),
    ],
)
def test_a_length_that_the_model_has_no_positions_for_is_refused(config, room, tmp_path, tiny_model):
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    write_json(model / "config.json", config)
    with pytest.raises(UserError, match=f"max_length: found 16; the base model takes at most {room} tokens"):
        tokenized(tmp_path, model)


def test_a_roberta_fails_where_the_check_says(tiny_model):
    import torch
    from transformers import RobertaConfig, RobertaModel

    sizes = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = RobertaModel(RobertaConfig(**sizes, intermediate_size=8, max_position_embeddings=17)).eval()
    assert model(torch.full((1, 15), 5)).last_hidden_state.shape == (1, 15, 8)
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, 16), 5))
