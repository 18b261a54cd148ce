"""What scikit-learn reaches on TF-IDF: logistic regression for one label a row, one of them for each of several labels,
ridge regression for numbers. Every pair of an n-gram length and a regularisation is fitted on train; the best on
validation is the opponent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunewright.errors import UserError
from tunewright.label_metrics import many_labels, of_many_labels, one_label
from tunewright.predictions import SPLITS
from tunewright.task import Baseline

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

Splits = Mapping[str, Any]
"""Split → rows, a `pa.Table` with text and label."""


@dataclass(frozen=True)
class Fitted:
    """A candidate: what it is and reaches on validation, and how it predicts texts."""

    found: dict[str, Any]
    rank: tuple[float, ...]
    """Smaller is better."""
    predict: Callable[[list[str]], np.ndarray]


def for_one_label(splits: Splits, names: Sequence[str], params: Any) -> Baseline:
    """Logistic regression, chosen by accuracy; then by loss, the fewer n-grams and the stronger regularisation.

    params: the section `baseline`.
    """
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, log_loss

    index = {name: at for at, name in enumerate(names)}
    labels = {split: np.array([index[name] for name in rows["label"].to_pylist()]) for split, rows in splits.items()}
    every = list(range(len(names)))

    def fit(vectorizer: Any, train: Any, validation: Any, longest: int, strength: float) -> Fitted:
        # newton-cg needs no random order, and a tenth of lbfgs's time on short texts.
        classifier = LogisticRegression(C=strength, solver="newton-cg", max_iter=1000).fit(train, labels["train"])

        def predict(features: Any) -> np.ndarray:
            found = np.zeros((features.shape[0], len(names)))
            found[:, classifier.classes_] = classifier.predict_proba(features)  # train may lack a label
            return found

        probabilities = predict(validation)
        accuracy = float(accuracy_score(labels["validation"], probabilities.argmax(axis=1)))
        loss = float(log_loss(labels["validation"], probabilities, labels=every))
        told = {"validation_accuracy": accuracy, "validation_loss": loss}
        return _fitted(vectorizer, train, predict, longest, strength, told, (-accuracy, loss))

    chosen, candidates = _choose(splits, params, fit)
    commonest = int(np.bincount(labels["train"], minlength=len(names)).argmax())
    return Baseline(
        name="TF-IDF and logistic regression",
        predictions={
            split: one_label(splits[split]["label"], chosen.predict(_texts(splits[split])), names) for split in SPLITS
        },
        details={
            "candidates": candidates,
            "chosen": chosen.found,
            "references": {f"majority, “{names[commonest]}”": float(np.mean(labels["test"] == commonest))},
        },
    )


def for_many_labels(splits: Splits, names: Sequence[str], params: Any) -> Baseline:
    """One logistic regression a label, chosen together by micro-F1; then by loss, as above."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    def indicators(rows: pa.Table) -> np.ndarray:
        found = [set(labels) for labels in rows["label"].to_pylist()]
        return np.array([[int(name in labels) for name in names] for labels in found]).reshape(len(found), len(names))

    def value(metric: str, table: pa.Table) -> float:
        return float(of_many_labels(table, names)[metric](np.ones((1, table.num_rows)))[0])

    labels = indicators(splits["train"])
    actual = {split: splits[split]["label"] for split in SPLITS}

    def fit(vectorizer: Any, train: Any, validation: Any, longest: int, strength: float) -> Fitted:
        classifiers = [
            # A label that all rows of train have, or none, leaves nothing to be learned.
            column[0]
            if column.min() == column.max()
            else LogisticRegression(C=strength, solver="newton-cg", max_iter=1000).fit(train, column)
            for column in labels.T
        ]

        def predict(features: Any) -> np.ndarray:
            rows = features.shape[0]
            return np.stack(
                [
                    one.predict_proba(features)[:, 1] if hasattr(one, "predict_proba") else np.full(rows, float(one))
                    for one in classifiers
                ],
                axis=1,
            )

        table = many_labels(actual["validation"], predict(validation), names)
        micro_f1, loss = value("micro_f1", table), value("loss", table)
        told = {"validation_micro_f1": micro_f1, "validation_loss": loss}
        return _fitted(vectorizer, train, predict, longest, strength, told, (-micro_f1, loss))

    chosen, candidates = _choose(splits, params, fit)
    commonest = int(labels.sum(axis=0).argmax())
    always = np.tile(np.eye(len(names))[commonest], (splits["test"].num_rows, 1))
    return Baseline(
        name="TF-IDF and one logistic regression a label",
        predictions={
            split: many_labels(actual[split], chosen.predict(_texts(splits[split])), names) for split in SPLITS
        },
        details={
            "candidates": candidates,
            "chosen": chosen.found,
            "references": {
                f"always “{names[commonest]}” alone": value("micro_f1", many_labels(actual["test"], always, names))
            },
        },
    )


def for_numbers(splits: Splits, params: Any) -> Baseline:
    """Ridge regression with α = 1 / (2C), chosen by RMSE; then the fewer n-grams and the stronger regularisation."""
    import numpy as np
    import pyarrow as pa
    from sklearn.linear_model import Ridge

    labels = {split: rows["label"].to_numpy().astype(float) for split, rows in splits.items()}

    def rmse(predicted: Any, split: str) -> float:
        return float(np.sqrt(np.mean((predicted - labels[split]) ** 2)))

    def fit(vectorizer: Any, train: Any, validation: Any, longest: int, strength: float) -> Fitted:
        regressor = Ridge(alpha=1 / (2 * strength), solver="sparse_cg", tol=1e-8).fit(train, labels["train"])
        found = rmse(regressor.predict(validation), "validation")
        return _fitted(vectorizer, train, regressor.predict, longest, strength, {"validation_rmse": found}, (found,))

    chosen, candidates = _choose(splits, params, fit)
    average = float(labels["train"].mean())
    return Baseline(
        name="TF-IDF and ridge regression",
        predictions={
            split: pa.table({"label": labels[split], "predicted": chosen.predict(_texts(splits[split]))})
            for split in SPLITS
        },
        details={
            "candidates": candidates,
            "chosen": chosen.found,
            "references": {f"mean of train, {average:.4g}": rmse(average, "test")},
        },
    )


Fit = Callable[[Any, Any, Any, int, float], Fitted]
"""Vectorizer, features of train and of validation, longest n-gram, C → a candidate."""


def _choose(splits: Splits, params: Any, fit: Fit) -> tuple[Fitted, list[dict[str, Any]]]:
    from threadpoolctl import threadpool_limits

    # Sparse products run on one thread anyway; more of them would only spin at the dot products in between.
    with threadpool_limits(1):
        candidates = list(_candidates(splits, params, fit))
    return min(candidates, key=lambda candidate: candidate.rank), [candidate.found for candidate in candidates]


def _candidates(splits: Splits, params: Any, fit: Fit) -> Iterator[Fitted]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    for longest in params.ngram_range:
        vectorizer = TfidfVectorizer(ngram_range=(1, longest), min_df=params.min_df, sublinear_tf=params.sublinear_tf)
        try:
            train = vectorizer.fit_transform(_texts(splits["train"]))
        except ValueError as error:
            raise UserError(
                f"baseline: no n-gram of words stands in {params.min_df} rows of train. Lower baseline.min_df."
            ) from error
        validation = vectorizer.transform(_texts(splits["validation"]))
        for strength in params.C:
            yield fit(vectorizer, train, validation, longest, strength)


def _fitted(
    vectorizer: Any,
    train: Any,
    predict: Callable[[Any], np.ndarray],
    longest: int,
    strength: float,
    told: dict[str, float],
    rank: tuple[float, ...],
) -> Fitted:
    found = {"ngram_range": longest, "C": strength, "features": train.shape[1], **told}
    return Fitted(found, (*rank, longest, strength), lambda texts: predict(vectorizer.transform(texts)))


def _texts(rows: Any) -> list[str]:
    found: list[str] = rows["text"].to_pylist()
    return found
