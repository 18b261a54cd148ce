"""A number for each text: a rating, a price, a duration.

The network learns (label − label_offset) / label_scale, with the squared error, and predictions come back in the
label's own unit. Both numbers stand in params and in the model's config, not in the data: so a model that is trained
again on other rows, or a reader of the exported one, takes them for the same. With what they are left out for, 0 and 1,
it learns the label as it is, which suits numbers of about that size; for larger ones take the mean and the standard
deviation that are expected.

Metrics: RMSE (which decides) and MAE in the label's unit, R², and the correlations of Pearson and of Spearman.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from tunewright import params as params_module
from tunewright.classification import classifier_head, new_classifier, padded, regressor, tokenized
from tunewright.task import Baseline, LabelKind, Predicting, TaskType

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from tunewright.statistics import Statistic
    from tunewright.tokenizer import ModelTokenizer


class TaskParams(params_module.TaskParams):
    """The section `task` of params.yaml for text regression."""

    type: Literal["text_regression"]
    label_offset: float = 0.0
    """What is taken off a label before it is learned: about the mean."""
    label_scale: float = Field(default=1.0, gt=0)
    """What a label is then divided by: about the standard deviation."""


class Task(TaskType):
    """See `tunewright.task.TaskType`."""

    columns: ClassVar[tuple[str, ...]] = ("text", "label")
    label_kind: ClassVar[LabelKind] = "number"
    metric_names: ClassVar[tuple[str, ...]] = ("rmse", "mae", "r2", "pearson", "spearman")
    lower_is_better: ClassVar[frozenset[str]] = frozenset({"rmse", "mae"})
    watched_metrics: ClassVar[tuple[str, ...]] = ("rmse", "mae")
    score_name: ClassVar[str] = "minus the absolute error"
    examples_title: ClassVar[str] = "Largest errors"
    pipeline_tag: ClassVar[str] = "text-classification"

    def encode(self, rows: pa.Table, tokenizer: ModelTokenizer, max_length: int) -> dict[str, list[Any]]:
        """Tokenize `text`; a label becomes (label − label_offset) / label_scale."""
        encoded, lengths = tokenized(rows.column("text").to_pylist(), tokenizer.backend, max_length)
        offset, scale = self.params.label_offset, self.params.label_scale
        labels = [(label - offset) / scale for label in rows.column("label").to_pylist()]
        return {"input_ids": encoded, "labels": labels, "tokens_before": lengths}

    def load_model(self, folder: Path, settings: dict[str, Any]) -> Any:
        """A sequence classifier of one output, learned by its squared error."""
        numbers = {"label_offset": self.params.label_offset, "label_scale": self.params.label_scale}
        return regressor(folder, numbers, settings)

    def from_config(self, config: Any) -> Any:
        """The same with new weights."""
        config.label_offset, config.label_scale = self.params.label_offset, self.params.label_scale
        return new_classifier(config, ["LABEL_0"], "regression")

    def head_modules(self, model: Any) -> list[Any]:
        """Everything that is no part of the pretrained body, and the body's pooler: it feeds only the head."""
        return classifier_head(model)

    def collate(self, rows: list[dict[str, Any]], pad_token_id: int) -> dict[str, Any]:
        """Pad to the longest row of the batch; labels (B,) are float32."""
        import torch

        labels = torch.tensor([row["labels"] for row in rows], dtype=torch.float32)
        return {**padded(rows, pad_token_id), "labels": labels}

    def compute_metrics(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """RMSE and MAE in the label's unit, from logits (N, 1) and labels (N,) as `encode` gives them."""
        import numpy as np

        errors = (logits.reshape(-1) - labels).astype(float) * self.params.label_scale
        return {"rmse": float(np.sqrt(np.mean(errors**2))), "mae": float(np.mean(np.abs(errors)))}

    def predict(
        self, model: Any, tokenizer: ModelTokenizer, rows: pa.Table, tokens: pa.Table, how: Predicting
    ) -> pa.Table:
        """label and predicted, both in the label's unit."""
        import pyarrow as pa

        from tunewright.compute import predict

        logits = predict(model, self, tokens, how.batch_size, model.config.pad_token_id or 0, how.max_tokens)
        predicted = logits[:, 0].astype(float) * self.params.label_scale + self.params.label_offset
        return pa.table({"label": rows["label"], "predicted": predicted})

    def statistics(self, predictions: pa.Table, calibration_bins: int) -> dict[str, Statistic]:
        """See `regression.statistics`."""
        from tunewright import regression

        return regression.statistics(*regression.columns(predictions))

    def scores(self, predictions: pa.Table) -> np.ndarray:
        """Minus each row's absolute error."""
        import numpy as np

        from tunewright.regression import columns

        labels, predicted = columns(predictions)
        scores: np.ndarray = -np.abs(labels - predicted)
        return scores

    def details(self, predictions: pa.Table, calibration_bins: int) -> dict[str, Any]:
        """by_label: what was predicted of rows of like labels."""
        from tunewright.regression import by_label, columns

        return {"by_label": by_label(*columns(predictions), calibration_bins)}

    def pictures(self, details: Mapping[str, Any]) -> dict[str, str]:
        """Predicted against actual."""
        from tunewright import charts

        return {"Predicted against actual on test": charts.predicted_against_actual(details["by_label"])}

    def baseline(self, splits: Mapping[str, pa.Table], params: Any, seed: int) -> Baseline:
        """TF-IDF and ridge regression, beside the mean of train."""
        from tunewright.linear_baseline import for_numbers

        return for_numbers(splits, params)
