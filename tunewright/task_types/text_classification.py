"""Text classification, one label a row: sentiment, topic, intent.

Metrics: accuracy; macro-F1 over the label set that params fix (a label that a split lacks counts as zero, so that two
splits are never compared over two label sets); expected calibration error, Brier score and cross-entropy.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from tunewright import params as params_module
from tunewright.classification import classifier, classifier_head, distinct, new_classifier, padded, tokenized
from tunewright.task import Baseline, LabelKind, Predicting, TaskType

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from tunewright.statistics import Statistic
    from tunewright.tokenizer import ModelTokenizer


class TaskParams(params_module.TaskParams):
    """The section `task` of params.yaml for text classification."""

    type: Literal["text_classification"]
    labels: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=2), AfterValidator(distinct)]
    """The label set, in the order of the model's outputs. Fixed here, not taken from the data."""


class Task(TaskType):
    """See `tunewright.task.TaskType`."""

    columns: ClassVar[tuple[str, ...]] = ("text", "label")
    label_kind: ClassVar[LabelKind] = "one"
    metric_names: ClassVar[tuple[str, ...]] = ("accuracy", "macro_f1", "ece", "brier", "loss")
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"ece", "brier", "loss"})
    watched_metrics: ClassVar[tuple[str, ...]] = ("accuracy", "macro_f1")
    in_percent: ClassVar[frozenset[str]] = frozenset({"accuracy"})
    score_name: ClassVar[str] = "accuracy"
    examples_title: ClassVar[str] = "Most confident errors"
    pipeline_tag: ClassVar[str] = "text-classification"

    def encode(self, rows: pa.Table, tokenizer: ModelTokenizer, max_length: int) -> dict[str, list[Any]]:
        """Tokenize `text`; a label becomes its index in `task.labels`."""
        encoded, lengths = tokenized(rows.column("text").to_pylist(), tokenizer.backend, max_length)
        index = {label: position for position, label in enumerate(self.params.labels)}
        labels = [index[label] for label in rows.column("label").to_pylist()]
        return {"input_ids": encoded, "labels": labels, "tokens_before": lengths}

    def load_model(self, folder: Path, settings: dict[str, Any]) -> Any:
        """A sequence classifier whose outputs carry the real label names."""
        return classifier(folder, self.params.labels, settings)

    def from_config(self, config: Any) -> Any:
        """The same with new weights."""
        return new_classifier(config, self.params.labels, "single_label_classification")

    def head_modules(self, model: Any) -> list[Any]:
        """Everything that is no part of the pretrained body, and the body's pooler: it feeds only the head."""
        return classifier_head(model)

    def collate(self, rows: list[dict[str, Any]], pad_token_id: int) -> dict[str, Any]:
        """Pad to the longest row of the batch."""
        import torch

        return {**padded(rows, pad_token_id), "labels": torch.tensor([int(row["labels"]) for row in rows])}

    def compute_metrics(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Accuracy and macro-F1 from logits (N, L) and labels (N,)."""
        from sklearn.metrics import accuracy_score, f1_score

        predicted = logits.argmax(axis=-1)
        every = list(range(len(self.params.labels)))
        return {
            "accuracy": float(accuracy_score(labels, predicted)),
            "macro_f1": float(f1_score(labels, predicted, labels=every, average="macro", zero_division=0)),
        }

    def predict(
        self, model: Any, tokenizer: ModelTokenizer, rows: pa.Table, tokens: pa.Table, how: Predicting
    ) -> pa.Table:
        """The label of the highest logit; every probability and logit."""
        from tunewright.compute import predict
        from tunewright.label_metrics import one_label, softmax

        logits = predict(model, self, tokens, how.batch_size, model.config.pad_token_id or 0, how.max_tokens)
        return one_label(rows["label"], softmax(logits), self.params.labels, logits)

    def statistics(self, predictions: pa.Table, calibration_bins: int) -> dict[str, Statistic]:
        """See `label_metrics.of_one_label`."""
        from tunewright.label_metrics import of_one_label

        return of_one_label(predictions, self.params.labels, calibration_bins)

    def scores(self, predictions: pa.Table) -> np.ndarray:
        """Whether each row was predicted right."""
        from tunewright.label_metrics import hits

        return hits(predictions)

    def details(self, predictions: pa.Table, calibration_bins: int) -> dict[str, Any]:
        """Each class, the confusion matrix, the reliability table."""
        from tunewright.label_metrics import details_of_one_label

        return details_of_one_label(predictions, self.params.labels, calibration_bins)

    def pictures(self, details: Mapping[str, Any]) -> dict[str, str]:
        """The confusion matrix and the reliability diagram."""
        from tunewright import charts

        return {
            "Confusion matrix on test": charts.confusion_matrix(details["confusion"], self.params.labels),
            "Reliability on test: confidence against accuracy": charts.reliability(details["reliability"]),
        }

    def examples(self, predictions: pa.Table, count: int) -> list[int]:
        """The errors that the model was surest about."""
        from tunewright.label_metrics import surest_errors

        return surest_errors(predictions, count)

    def baseline(self, splits: Mapping[str, pa.Table], params: Any, seed: int) -> Baseline:
        """TF-IDF and logistic regression, beside the commonest label."""
        from tunewright.linear_baseline import for_one_label

        return for_one_label(splits, self.params.labels, params)
