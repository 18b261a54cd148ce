"""Code translation: a decoder learns to write a piece of code in Python, as `instruction` with metrics for code.

Metrics: bits_per_byte and perplexity of the answers; exact_match, edit_similarity, chrf and syntax_valid (what was
written, as a whole, is Python) of those that were written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from tunewright.language_model import Prompted, PromptParams

if TYPE_CHECKING:
    import pyarrow as pa

    from tunewright.statistics import Statistic
    from tunewright.text_metrics import TextMetric


class TaskParams(PromptParams):
    """The section `task` of params.yaml for code translation."""

    type: Literal["code_translation"]


class Task(Prompted):
    """See `tunewright.task.TaskType`."""

    metric_names: ClassVar[tuple[str, ...]] = (
        "bits_per_byte",
        "perplexity",
        "exact_match",
        "edit_similarity",
        "chrf",
        "syntax_valid",
    )
    text_metrics: ClassVar[tuple[TextMetric, ...]] = ("exact_match", "edit_similarity", "chrf")
    in_percent: ClassVar[frozenset[str]] = frozenset({"exact_match", "edit_similarity", "syntax_valid"})

    def statistics(self, predictions: pa.Table, calibration_bins: int) -> dict[str, Statistic]:
        """As every writer, and the share of what was written that is Python."""
        import numpy as np

        from tunewright.python_syntax import is_python
        from tunewright.text_metrics import mean_of_written

        found = super().statistics(predictions, calibration_bins)
        written = predictions["predicted"].to_pylist()
        if any(text is not None for text in written):
            valid = [np.nan if text is None else float(bool(text) and is_python(text)) for text in written]
            found["syntax_valid"] = mean_of_written(np.array(valid))
        return found
