"""Text classification, any number of labels a row, also none: tags, emotions, the topics of a document.

Metrics: micro-F1 and macro-F1 over the label set that params fix, of the labels whose probability is above one half
(each label has its own sigmoid, and a logit above 0 is a probability above one half); the share of rows all of whose
labels are right; binary cross-entropy.
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
    """The section `task` of params.yaml for classification with several labels a row."""

    type: Literal["multi_label_classification"]
    labels: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=2), AfterValidator(distinct)]
    """The label set, in the order of the model's outputs. Fixed here, not taken from the data."""


class Task(TaskType):
    """See `tunewright.task.TaskType`."""

    columns: ClassVar[tuple[str, ...]] = ("text", "label")
    label_kind: ClassVar[LabelKind] = "set"
    metric_names: ClassVar[tuple[str, ...]] = ("micro_f1", "macro_f1", "subset_accuracy", "loss")
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"loss"})
    watched_metrics: ClassVar[tuple[str, ...]] = ("micro_f1", "macro_f1")
    in_percent: ClassVar[frozenset[str]] = frozenset({"subset_accuracy", "all labels right"})
    score_name: ClassVar[str] = "all labels right"
    examples_title: ClassVar[str] = "Costliest errors"
    pipeline_tag: ClassVar[str] = "text-classification"

    def encode(self, rows: pa.Table, tokenizer: ModelTokenizer, max_length: int) -> dict[str, list[Any]]:
        """Tokenize `text`; for each label of `task.labels` 1.0 where the row has it, else 0.0."""
        encoded, lengths = tokenized(rows.column("text").to_pylist(), tokenizer.backend, max_length)
        found = [set(labels) for labels in rows.column("label").to_pylist()]
        labels = [[float(label in row) for label in self.params.labels] for row in found]
        return {"input_ids": encoded, "labels": labels, "tokens_before": lengths}

    def load_model(self, folder: Path, settings: dict[str, Any]) -> Any:
        """A sequence classifier with one sigmoid a label, whose outputs carry the real label names."""
        return classifier(folder, self.params.labels, {"problem_type": "multi_label_classification", **settings})

    def from_config(self, config: Any) -> Any:
        """The same with new weights."""
        return new_classifier(config, self.params.labels, "multi_label_classification")

    def head_modules(self, model: Any) -> list[Any]:
        """Everything that is no part of the pretrained body, and the body's pooler: it feeds only the head."""
        return classifier_head(model)

    def collate(self, rows: list[dict[str, Any]], pad_token_id: int) -> dict[str, Any]:
        """Pad to the longest row of the batch; labels (B, L) are float32, as the binary cross-entropy wants them."""
        import torch

        labels = torch.tensor([list(row["labels"]) for row in rows], dtype=torch.float32)
        return {**padded(rows, pad_token_id), "labels": labels}

    def compute_metrics(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Micro-F1 and macro-F1 from logits (N, L) and labels (N, L) of 0 and 1.

        Micro: over all decisions together. Macro: the mean of each label's own F1, 0 for a label that is neither
        there nor predicted.
        """
        from sklearn.metrics import f1_score

        predicted = (logits > 0).astype(int)
        actual = labels.astype(int)
        return {
            "micro_f1": float(f1_score(actual, predicted, average="micro", zero_division=0)),
            "macro_f1": float(f1_score(actual, predicted, average="macro", zero_division=0)),
        }

    def predict(
        self, model: Any, tokenizer: ModelTokenizer, rows: pa.Table, tokens: pa.Table, how: Predicting
    ) -> pa.Table:
        """The labels whose logit is above 0; every probability and logit."""
        from tunewright.compute import predict
        from tunewright.label_metrics import many_labels, sigmoid

        logits = predict(model, self, tokens, how.batch_size, model.config.pad_token_id or 0, how.max_tokens)
        return many_labels(rows["label"], sigmoid(logits), self.params.labels, logits)

    def statistics(self, predictions: pa.Table, calibration_bins: int) -> dict[str, Statistic]:
        """See `label_metrics.of_many_labels`."""
        from tunewright.label_metrics import of_many_labels

        return of_many_labels(predictions, self.params.labels)

    def scores(self, predictions: pa.Table) -> np.ndarray:
        """Whether all labels of each row are right, and no other."""
        from tunewright.label_metrics import hits

        return hits(predictions)

    def details(self, predictions: pa.Table, calibration_bins: int) -> dict[str, Any]:
        """Each label against the rest."""
        from tunewright.label_metrics import details_of_many_labels

        return details_of_many_labels(predictions, self.params.labels)

    def pictures(self, details: Mapping[str, Any]) -> dict[str, str]:
        """F1 of each label."""
        from tunewright import charts

        return {"F1 of each label on test": charts.f1_by_label(details["per_class"], self.params.labels)}

    def examples(self, predictions: pa.Table, count: int) -> list[int]:
        """The wrong rows of the highest loss."""
        from tunewright.label_metrics import costliest

        return costliest(predictions, self.params.labels, count)

    def baseline(self, splits: Mapping[str, pa.Table], params: Any, seed: int) -> Baseline:
        """TF-IDF and one logistic regression a label, beside the commonest label alone."""
        from tunewright.linear_baseline import for_many_labels

        return for_many_labels(splits, self.params.labels, params)
