"""Token classification, one label a word: named entities, parts of speech.

Metrics: F1 of entities, as CoNLL scores them: an entity is right where its words and its kind are. With labels like
`B-place` and `I-place` an entity begins at each B; with plain labels it is a run of words with the same one. `O` is
no entity. Beside it macro-F1 over the label set, and the accuracy, both of words. Words behind `tokenize.max_length`
get no label, and count as missed.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from tunewright import params as params_module
from tunewright.classification import classifier, classifier_head, distinct, padded
from tunewright.task import Baseline, LabelKind, Predicting, TaskType

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from tunewright.statistics import Statistic
    from tunewright.tokenizer import ModelTokenizer

OUTSIDE = "O"
IGNORED = -100
MISSED = ""
"""What is predicted for a word that the model did not see."""

Entity = tuple[int, int, str]
"""First word, the word behind the last one, kind."""


class TaskParams(params_module.TaskParams):
    """The section `task` of params.yaml for token classification."""

    type: Literal["token_classification"]
    labels: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=2), AfterValidator(distinct)]
    """The label set, in the order of the model's outputs; `O` for words that are no entity."""


class Task(TaskType):
    """See `tunewright.task.TaskType`."""

    columns: ClassVar[tuple[str, ...]] = ("text", "label")
    label_kind: ClassVar[LabelKind] = "sequence"
    metric_names: ClassVar[tuple[str, ...]] = ("entity_f1", "macro_f1", "accuracy")
    watched_metrics: ClassVar[tuple[str, ...]] = ("accuracy",)
    in_percent: ClassVar[frozenset[str]] = frozenset({"accuracy"})
    score_name: ClassVar[str] = "accuracy"
    pipeline_tag: ClassVar[str] = "token-classification"

    def encode(self, rows: pa.Table, tokenizer: ModelTokenizer, max_length: int) -> dict[str, list[Any]]:
        """Tokenize the words of `text`. The first token of a word has its label, the others and the special tokens
        have none."""
        tokenizer.backend.no_padding()
        tokenizer.backend.no_truncation()
        words = [text.split(" ") for text in rows.column("text").to_pylist()]
        lengths = [len(found.ids) for found in tokenizer.backend.encode_batch(words, is_pretokenized=True)]
        tokenizer.backend.enable_truncation(max_length)
        encoded = tokenizer.backend.encode_batch(words, is_pretokenized=True)
        index = {label: position for position, label in enumerate(self.params.labels)}
        labels = []
        for found, names in zip(encoded, rows.column("label").to_pylist(), strict=True):
            of_word = [None, *found.word_ids[:-1]]
            labels.append(
                [
                    IGNORED if word is None or word == before else index[names[word]]
                    for word, before in zip(found.word_ids, of_word, strict=True)
                ]
            )
        return {"input_ids": [found.ids for found in encoded], "labels": labels, "tokens_before": lengths}

    def load_model(self, folder: Path, settings: dict[str, Any]) -> Any:
        """A token classifier whose outputs carry the real label names."""
        return classifier(folder, self.params.labels, settings, of="AutoModelForTokenClassification")

    def head_modules(self, model: Any) -> list[Any]:
        """Everything that is no part of the pretrained body."""
        return classifier_head(model)

    def collate(self, rows: list[dict[str, Any]], pad_token_id: int) -> dict[str, Any]:
        """Pad to the longest row of the batch; labels (B, T)."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        labels = [torch.tensor(row["labels"], dtype=torch.int64) for row in rows]
        return {
            **padded(rows, pad_token_id),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        }

    def compute_metrics(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """The accuracy of words, from logits (N, T, L) and labels (N, T)."""
        known = labels != IGNORED
        return {"accuracy": float((logits.argmax(axis=-1) == labels)[known].mean())}

    def predict(
        self, model: Any, tokenizer: ModelTokenizer, rows: pa.Table, tokens: pa.Table, how: Predicting
    ) -> pa.Table:
        """label and predicted: a list of names a row, one for each word."""
        import numpy as np

        from tunewright.compute import logits_of_rows

        logits = logits_of_rows(model, self, tokens, how.batch_size, model.config.pad_token_id or 0, how.max_tokens)
        predicted = []
        for found, of_tokens, actual in zip(
            logits, tokens["labels"].to_pylist(), rows["label"].to_pylist(), strict=True
        ):
            first = np.flatnonzero(np.array(of_tokens) != IGNORED)
            names = [self.params.labels[at] for at in found[first].argmax(axis=-1)]
            predicted.append(names + [MISSED] * (len(actual) - len(names)))
        return _table(rows["label"], predicted)

    def statistics(self, predictions: pa.Table, calibration_bins: int) -> dict[str, Statistic]:
        """All three from counts of each row, so that a resample of rows sums them anew."""
        import numpy as np

        entities = np.array([_agreement(entities_of(a), entities_of(p)) for a, p in _pairs(predictions)])
        words = np.array([[self._of_label(a, p, name) for name in self.params.labels] for a, p in _pairs(predictions)])
        hits = np.array([[sum(map(str.__eq__, a, p)), len(a)] for a, p in _pairs(predictions)])

        def f1(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
            both, actual, found = np.moveaxis(np.tensordot(weights, counts, 1), -1, 0)
            result: np.ndarray = 2 * both / np.maximum(actual + found, 1)
            return result

        def accuracy(weights: np.ndarray) -> np.ndarray:
            right, every = np.moveaxis(weights @ hits, -1, 0)
            result: np.ndarray = right / np.maximum(every, 1)
            return result

        return {
            "entity_f1": lambda weights: f1(weights, entities),
            "macro_f1": lambda weights: f1(weights, words).mean(axis=-1),
            "accuracy": accuracy,
        }

    def scores(self, predictions: pa.Table) -> np.ndarray:
        """The share of a row's words that were labelled right."""
        import numpy as np

        return np.array([sum(map(str.__eq__, a, p)) / len(a) for a, p in _pairs(predictions)])

    def details(self, predictions: pa.Table, calibration_bins: int) -> dict[str, Any]:
        """Each label over the words: precision, recall, F1, support; and which was taken for which."""
        names = self.params.labels
        counted = Counter(pair for a, p in _pairs(predictions) for pair in zip(a, p, strict=True))
        per_class = {}
        for name in names:
            both = counted[name, name]
            actual = sum(count for (of, _), count in counted.items() if of == name)
            found = sum(count for (_, taken), count in counted.items() if taken == name)
            per_class[name] = {
                "precision": both / max(found, 1),
                "recall": both / max(actual, 1),
                "f1": 2 * both / max(actual + found, 1),
                "support": actual,
            }
        return {"per_class": per_class, "words": [[counted[a, p] for p in names] for a in names]}

    def pictures(self, details: Mapping[str, Any]) -> dict[str, str]:
        """Which label was taken for which."""
        from tunewright import charts

        return {"Confusion of words on test": charts.confusion_matrix(details["words"], self.params.labels)}

    def baseline(self, splits: Mapping[str, pa.Table], params: Any, seed: int) -> Baseline:
        """The commonest label of a word in train: after the word before it where train has that pair, else alone; of a
        word that train lacks, the commonest of all."""
        seen: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        for text, labels in zip(*(splits["train"][name].to_pylist() for name in self.columns), strict=True):
            for context, label in zip(_contexts(text), labels, strict=True):
                for at in range(len(context) + 1):
                    seen[context[at:]][label] += 1
        commonest = {context: min(found, key=lambda name: (-found[name], name)) for context, found in seen.items()}

        def label_of(context: tuple[str, ...]) -> str:
            return next(commonest[context[at:]] for at in range(len(context) + 1) if context[at:] in commonest)

        predictions = {
            split: _table(rows["label"], [[*map(label_of, _contexts(text))] for text in rows["text"].to_pylist()])
            for split, rows in splits.items()
            if split != "train"
        }
        return Baseline(name="the commonest label of a word and the one before it", predictions=predictions)

    @staticmethod
    def _of_label(actual: Sequence[str], predicted: Sequence[str], name: str) -> tuple[int, int, int]:
        both = sum(a == p == name for a, p in zip(actual, predicted, strict=True))
        return both, actual.count(name), predicted.count(name)


def entities_of(labels: Sequence[str]) -> set[Entity]:
    """The entities of a row: see the head of this file."""
    found: set[Entity] = set()
    start, kind = 0, OUTSIDE
    for at, label in enumerate([*labels, OUTSIDE]):
        begins = label.startswith("B-")
        name = label[2:] if begins or label.startswith("I-") else label
        if begins or name != kind:
            if kind not in (OUTSIDE, MISSED):
                found.add((start, at, kind))
            start, kind = at, name
    return found


def _agreement(actual: set[Entity], predicted: set[Entity]) -> tuple[int, int, int]:
    return len(actual & predicted), len(actual), len(predicted)


def _pairs(predictions: pa.Table) -> Iterator[tuple[list[str], list[str]]]:
    """The actual and the predicted labels of each row."""
    return zip(predictions["label"].to_pylist(), predictions["predicted"].to_pylist(), strict=True)


def _contexts(text: str) -> list[tuple[str, ...]]:
    """Each word behind the one before it."""
    words = ["", *text.split(" ")]
    return list(itertools.pairwise(words))


def _table(actual: Any, predicted: list[list[str]]) -> pa.Table:
    import pyarrow as pa

    return pa.table({"label": actual, "predicted": pa.array(predicted, pa.list_(pa.string()))})
