"""What a task type is: what every file in `task_types/` gives, and how one is loaded by name.

The stages ask the task type for all that differs between jobs: which columns a row has, how it becomes model inputs,
what the model writes for it, which metrics that makes, and what is reached without a model. So a new job is one file.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tunewright.params import TaskParams

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from tunewright.statistics import Statistic
    from tunewright.tokenizer import ModelTokenizer

SAMPLE_WEIGHT = "sample_weight"
"""A column of numbers that weighs the rows in training, where the prepared rows have it."""
CANARY = "canary-"
"""What the row_ids of canaries begin with (tunewright/canaries.py), which stand among the tokens of train alone."""

LabelKind = Literal["one", "set", "sequence", "number", "none"]
Likelihood = Literal["causal", "masked", "none"]
Architecture = Literal["encoder", "decoder", "encoder_decoder"]

NAMED: frozenset[LabelKind] = frozenset({"one", "set"})
"""The kinds of label that name a row as a whole: only of them are there shares, rates by group, and names to leak."""


@dataclass(frozen=True)
class Predicting:
    """How a model is asked. `generation` is the section `evaluate.generation`, for tasks that write text."""

    batch_size: int
    seed: int
    generation: Any = None
    max_tokens: int | None = None
    """Padded tokens of a batch, in place of `batch_size` rows."""


@dataclass(frozen=True)
class Baseline:
    """What is reached without training a network: `predictions` as `TaskType.predict` gives them, of validation and
    test; of no split where a job has nothing to be compared with."""

    name: str
    """In words, for the report: "TF-IDF and logistic regression"."""
    predictions: Mapping[str, pa.Table]
    details: dict[str, Any] = field(default_factory=dict)
    """For the report's JSON. The page shows `candidates` (records of one shape), `chosen` (one of them) and
    `references` (even simpler answers: their name → the deciding metric on test)."""
    fixed: Mapping[str, pa.Table] = field(default_factory=dict)
    """Answers that learn nothing, by name, as predictions of test: measured by every metric, chosen or not."""


class TaskType:
    """One kind of job, from a row of text to a metric: the base of every `Task` in `task_types/`.

    It knows nothing of files, stages or training loops. Where a method below has a body, that is what a job without
    anything special needs.

    What only some methods need (metrics, pictures) they import inside: a stage depends on it only where it calls them.
    """

    columns: ClassVar[tuple[str, ...]] = ("text",)
    """The columns that `ingest` must fill from each source, beside the row's id; the text first. `label` is what a
    classifier predicts, of the kind `label_kind`; `target` is a text that is to be written."""
    label_kind: ClassVar[LabelKind] = "none"
    """What `label` holds. one: a name of `task.labels`. set: a list of them, sorted as in `task.labels`. sequence: a
    list of them in the file's order, one for each word of `text` (words stand between single spaces). number: float64.
    none: there is no such column."""
    architectures: ClassVar[tuple[Architecture, ...]] = ("encoder",)
    """The kinds of base models that the job can be done with, the fittest first: `choose_model` asks for them."""
    metric_names: ClassVar[tuple[str, ...]]
    """What `statistics` gives. The first decides: margins over the baseline are its."""
    lower_is_better: ClassVar[frozenset[str]] = frozenset()
    """Those of `metric_names` of which less is better."""
    generates: ClassVar[bool] = False
    """Whether the model writes text, by `evaluate.generation`."""
    pretrained: ClassVar[bool] = False
    """Whether the untouched base model can do this job already, so that it is measured too (a language model can;
    a classifier's new head can't)."""
    likelihood: ClassVar[Likelihood] = "none"
    """How likely the model holds any text to be, so that suites of sentences can be put to it. causal: from each token
    to the next. masked: each token from all others. none: it can't be asked that."""
    watched_metrics: ClassVar[tuple[str, ...]] = ()
    """What `compute_metrics` gives while training, of `metric_names`; where that is nothing it isn't called. Logits
    over a vocabulary are too large to be kept: such a job watches the loss alone."""
    in_percent: ClassVar[frozenset[str]] = frozenset()
    """Those of `metric_names`, and `score_name`, that are shares from 0 to 1 and are shown so."""
    score_name: ClassVar[str] = "score"
    """What `scores` are called where their means are shown."""
    examples_title: ClassVar[str] = "Examples"
    pipeline_tag: ClassVar[str] = ""
    """What the Hugging Face Hub and `transformers.pipeline` call the job; empty where they have no word for it."""

    def __init__(self, params: Any) -> None:
        self.params = params

    @property
    def label_names(self) -> list[str]:
        """`task.labels`, in the order of the model's outputs; empty where a label is no name or there is none."""
        return list(getattr(self.params, "labels", ()))

    def asking(self, text: str) -> str:
        """The text as Transformers is asked it, in Python, for the card: a string, or messages for a chat template. The
        code may name the pipeline `ask`."""
        return json.dumps(text, ensure_ascii=False)

    # --- rows → model inputs

    def encode(self, rows: pa.Table, tokenizer: ModelTokenizer, max_length: int) -> dict[str, list[Any]]:
        """Rows → model inputs: `input_ids` (a list of token ids each, unpadded), `labels`, `tokens_before` (the length
        in tokens before truncation). A job that makes several inputs of one row gives `row` too: of which row each is,
        in their order. Any further list is kept as a column of the tokens."""
        raise NotImplementedError

    def rows_with_secrets(self, row_ids: list[str], prompts: list[str], secrets: list[str]) -> pa.Table | None:
        """Rows of this job in each of which a secret follows a prompt, for tunewright/canaries.py; None where the model
        learns no text. What is not the secret depends on the prompt alone."""
        return None

    def collate(self, rows: list[dict[str, Any]], pad_token_id: int) -> dict[str, Any]:
        """Rows of one batch → padded tensors: input_ids (B, T), attention_mask (B, T), labels."""
        raise NotImplementedError

    def collate_for_training(
        self, rows: list[dict[str, Any]], pad_token_id: int, seed: int, epoch: int
    ) -> dict[str, Any]:
        """`collate` in an epoch (from 0) of a training with this seed, for a job that draws its inputs anew in each.
        It depends on its arguments and on nothing else, so that a training that was killed ends with the same bytes."""
        return self.collate(rows, pad_token_id)

    # --- the model

    def load_model(self, folder: Path, settings: dict[str, Any]) -> Any:
        """The model to tune, from a folder with safetensors; `settings` go into its config (dropout)."""
        raise NotImplementedError

    def from_config(self, config: Any) -> Any:
        """A model with new weights, of an `AutoConfig`, for training from scratch; None where the body alone will do,
        because what is on top of it is new whatever the base model.

        Raises
            ValueError  where the architecture has no such model, or can't be built as its config says.
        """
        return None

    def head_modules(self, model: Any) -> list[Any]:
        """The modules that `finetuning_type: head` trains: what is new on top of the pretrained body."""
        raise NotImplementedError

    def compute_metrics(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """The metrics watched during training, from logits (N, …) and labels (N, …)."""
        return {}

    def files(self, tokenizer: ModelTokenizer) -> dict[str, str]:
        """Texts that belong beside the tuned model's weights, by file name: a chat template."""
        return {}

    def opening(self, tokenizer: ModelTokenizer) -> list[int]:
        """The tokens that a text begins with, where `likelihood` is causal."""
        return []

    def request(self, tokenizer: ModelTokenizer, text: str) -> list[int] | None:
        """The tokens of a user's request, up to where the answer begins; None where the model is no assistant: it goes
        on with a text."""
        return None

    def end_of_answer(self, tokenizer: ModelTokenizer) -> str:
        """What ends a written text beside the tokenizer's own end: the token that closes a turn."""
        return ""

    def answered(
        self, model: Any, tokenizer: ModelTokenizer, rows: pa.Table, tokens: pa.Table, answers: Sequence[str]
    ) -> list[tuple[list[int], list[int]]]:
        """For a job that writes text: of each of `rows` the tokens of its prompt, and those of this answer to it with
        what ends it, as the model reads them.

        tokens: what `encode` made of these rows.   answers: one a row, as `predict` gives them.
        """
        raise NotImplementedError

    # --- what it is worth

    def predict(
        self, model: Any, tokenizer: ModelTokenizer, rows: pa.Table, tokens: pa.Table, how: Predicting
    ) -> pa.Table:
        """What the model says: one row for each of `rows`, in their order, of all that `statistics` needs (without
        row_id). Classifiers give label, predicted, probability_NAME, logit_NAME; jobs that write text give label (the
        text that was expected) and predicted; language models give nll (nats, summed over a row's counted tokens),
        tokens and bytes. What was not computed of a row is null; a NaN says that the training diverged.

        rows: of `paths.prepared`.   tokens: what `encode` made of them, as `tokenize` keeps it.
        """
        raise NotImplementedError

    def statistics(self, predictions: pa.Table, calibration_bins: int) -> dict[str, Statistic]:
        """Each of `metric_names` as a function of how often each row counts: (B, N) → (B,). So every metric has a
        bootstrap interval, and a paired one against any other predictions of the same rows. A metric that such
        predictions don't allow, as perplexity of a baseline without tokens, is left out."""
        raise NotImplementedError

    def scores(self, predictions: pa.Table) -> np.ndarray:
        """One number a row (N,), more is better, whose mean says how good a slice of the rows is; for a classifier
        whether the row was predicted right, 0.0 or 1.0. NaN where a row was not scored."""
        raise NotImplementedError

    def details(self, predictions: pa.Table, calibration_bins: int) -> dict[str, Any]:
        """What one split's metrics can't show, for the report's JSON and its pictures.

        The page shows `per_class` (name → precision, recall, f1, support) as a table. `dvc plots` draws `confusion`
        (counts by actual and predicted label) and `reliability` (bins of confidence, accuracy, rows) of test.
        """
        return {}

    def pictures(self, details: Mapping[str, Any]) -> dict[str, str]:
        """`details` of test as pictures (SVG), by caption."""
        return {}

    def examples(self, predictions: pa.Table, count: int) -> list[int]:
        """The positions of the rows of test that the report quotes, by default those with the lowest score."""
        import numpy as np

        scores = self.scores(predictions)
        order = np.argsort(scores, kind="stable")  # NaN last
        return [int(at) for at in order[: min(count, int(np.isfinite(scores).sum()))]]

    def baseline(self, splits: Mapping[str, pa.Table], params: Any, seed: int) -> Baseline:
        """Fit on train, choose on validation, predict validation and test.   params: the section `baseline`."""
        raise NotImplementedError


def load_task(params: TaskParams) -> TaskType:
    """The task type that `task.type` names, made from its params."""
    module = importlib.import_module(f"tunewright.task_types.{params.type}")
    task: TaskType = module.Task(params)
    return task
