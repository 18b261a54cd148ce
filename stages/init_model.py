"""The base model: as it was fetched, or from scratch, with a tokenizer of its own and new weights.

Reads   paths.fetched_model  what fetch_model brought; left alone where training begins from scratch
        paths.prepared       from scratch: the texts (and targets) of train, for the tokenizer
        paths.data_passed    from scratch: the gate's pass file
Writes  paths.base_model     a folder that Transformers loads
Report  paths.reports/init_model.json: from scratch, the architecture, its parameters and the tokenizer; else applies is
        false, and the folder is the fetched one, file by file

The weights are drawn by `seed`, and the tokenizer sees train alone: a word that only validation or test holds is not in
its vocabulary.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tunewright import chat
from tunewright.errors import UserError
from tunewright.files import atomic_folder, open_parquet, sha256_tree
from tunewright.gates import require_pass
from tunewright.params import Section
from tunewright.report import Report, RowAccount
from tunewright.scratch import checked_config, family, make_model, parameters
from tunewright.stage import Dep, Key, Out, Paths, run_stage
from tunewright.task import TaskType
from tunewright.tokenizer_training import CHATML, Kind, special_tokens, train


class FromScratch(Section):
    """A model that has seen nothing yet."""

    architecture: str = Field(min_length=1, description="a model_type of Transformers: bert, gpt2, llama, t5, …")
    config: dict[str, Any] = Field(description="keys of the architecture's own config")
    tokenizer: Kind
    vocab_size: int = Field(ge=16, le=1_000_000, description="entries at most, the special tokens included")
    lowercase: bool = False
    extra_ids: int = Field(default=0, ge=0, le=1000, description="sentinels of span corruption")
    chat_template: Literal["chatml"] | None = None

    @model_validator(mode="after")
    def _bytes_have_room(self) -> Self:
        if self.tokenizer == "byte_level_bpe" and self.vocab_size < 300:
            raise ValueError("vocab_size of at least 300 with byte_level_bpe, which begins with the 256 bytes")
        return self


class InitModelParams(Section):
    """Where the base model comes from: null, as fetch_model brought it."""

    from_scratch: FromScratch | None


class InitModelPaths(Paths):
    fetched_model: Dep
    prepared: Dep
    data_passed: Dep
    base_model: Out


class InitModelReport(Report):
    """From scratch: what was made. `parameters` counts weights, those of the token embeddings among them."""

    architecture: str | None = None
    model_type: str | None = None
    parameters: int | None = None
    embedding_parameters: int | None = None
    tokenizer: str | None = None
    vocab_size: int | None = None
    special_tokens: dict[str, str] = Field(default_factory=dict)
    characters: int | None = None
    """Of train, that the tokenizer was trained on."""
    sha256: str | None = None


def run(
    paths: InitModelPaths,
    params: InitModelParams,
    task: TaskType,
    seed: Annotated[int, Key("seed")],
    model_name_or_path: Annotated[str | None, Key("fetch_model.model_name_or_path")],
) -> InitModelReport:
    """Copy the fetched model, or make a new one.

    Raises
        UserError   both a fetched model and one from scratch, or neither; an architecture or a config that Transformers
                    does not know or that can't do the task; a vocabulary without room for single characters.
        GateClosed  from scratch, when the data gate has not passed these very rows.
    """
    _check_one(params, model_name_or_path)
    asked = params.from_scratch
    if asked is None:
        with atomic_folder(paths.base_model) as staging:
            # Copies, not links: DVC may hold the fetched files as links into its cache.
            shutil.copytree(paths.fetched_model, staging, copy_function=shutil.copyfile, dirs_exist_ok=True)
        return InitModelReport(applies=False)

    require_pass(paths.data_passed, "prepared", paths.prepared)
    kind = family(asked.architecture)
    checked_config(asked.architecture, asked.config)  # before the tokenizer takes its time
    special = special_tokens(kind, asked.tokenizer, asked.extra_ids, chat=asked.chat_template is not None)
    rows = paths.prepared / "train.parquet"
    sizes = [len(text) for text in _texts(rows, task)]
    tokenizer = train(asked.tokenizer, lambda: _texts(rows, task), asked.vocab_size, special, lowercase=asked.lowercase)
    template = CHATML if asked.chat_template else None
    with atomic_folder(paths.base_model) as staging:
        model = make_model(task, asked.architecture, asked.config, tokenizer, special, template, seed, staging)
        return InitModelReport(
            rows=RowAccount(rows_in=_count(rows), rows_kept=_count(rows)),
            architecture=type(model).__name__,
            model_type=asked.architecture,
            parameters=parameters(model),
            embedding_parameters=parameters(model.get_input_embeddings()),
            tokenizer=asked.tokenizer,
            vocab_size=tokenizer.get_vocab_size(),
            special_tokens=special.roles,
            characters=sum(sizes),
            sha256=sha256_tree(staging),
        )


def check(
    params: InitModelParams, model_name_or_path: Annotated[str | None, Key("fetch_model.model_name_or_path")]
) -> list[str]:
    """What can be seen wrong before anything runs (`tunewright check`)."""
    try:
        _check_one(params, model_name_or_path)
        if params.from_scratch is not None:
            family(params.from_scratch.architecture)
            checked_config(params.from_scratch.architecture, params.from_scratch.config)
    except UserError as error:
        return [str(error)]
    return []


def _check_one(params: InitModelParams, fetched: str | None) -> None:
    if params.from_scratch is None and fetched is None:
        raise UserError(
            "init_model.from_scratch: found null, and fetch_model.model_name_or_path is null too; there is no base "
            "model. Set one of them."
        )
    if params.from_scratch is not None and fetched is not None:
        raise UserError(
            f"init_model.from_scratch: found a section, and fetch_model.model_name_or_path is {fetched}; there is one "
            "base model. Set one of them to null."
        )


def _texts(train_rows: Path, task: TaskType) -> Iterator[str]:
    """The texts and targets of train; of a conversation the contents, since a template puts its own marks around
    them."""
    columns = [name for name in ("text", "target") if name in task.columns]
    with open_parquet(train_rows) as file:
        for batch in file.iter_batches(columns=columns, use_threads=False):
            for row in batch.to_pylist():
                for column in columns:
                    text = row[column] or ""
                    if chat.MARKER.match(text.lstrip()):
                        yield from (message["content"] for message in chat.parse(text))
                    else:
                        yield text


def _count(train_rows: Path) -> int:
    with open_parquet(train_rows) as file:
        return int(file.metadata.num_rows)


if __name__ == "__main__":
    run_stage(run)
