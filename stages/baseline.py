"""What scikit-learn reaches on the same rows and the same split: TF-IDF and logistic regression, tuned.

Reads   paths.prepared              Parquet, one file a split
        paths.data_passed           the gate's pass file
Writes  paths.baseline_predictions  one row of validation and test each: label, predicted, probabilities
Report  paths.reports/baseline.json

An honest opponent: the longest n-gram and the regularisation are chosen by accuracy on validation, as the
tuned model's best step is. Test is read once, by the candidate that was chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, Field

from tunewright.errors import UserError
from tunewright.files import read_parquet, sha256_tree, write_parquet
from tunewright.gates import require_pass
from tunewright.params import Section
from tunewright.report import Report, RowAccount
from tunewright.stage import Dep, Key, Out, Paths, run_stage
from tunewright.statistics import Estimate, bootstrap, macro_f1, mean
from tunewright.task import TaskType

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

JUDGED_SPLITS = ("validation", "test")


class BaselinePaths(Paths):
    prepared: Dep
    data_passed: Dep
    baseline_predictions: Out


class BaselineParams(Section):
    """Every pair of an n-gram length and a C is a candidate; the best on validation is taken."""

    ngram_range: list[Annotated[int, Field(ge=1, le=10)]] = Field(
        min_length=1, description="longest n-grams of words to try; each counts the shorter ones too"
    )
    C: list[Annotated[float, Field(gt=0)]] = Field(
        min_length=1, description="inverses of the regularisation's strength to try"
    )
    min_df: int = Field(ge=1, description="rows of train that an n-gram must stand in to count")
    sublinear_tf: bool = Field(description="1 + ln(count) in place of an n-gram's count in a row")


class Candidate(BaseModel):
    """One pair that was tried."""

    ngram_range: int
    C: float
    features: int
    validation_accuracy: float
    validation_loss: float


class Majority(BaseModel):
    """What answering the commonest label of train reaches."""

    label: str
    test_accuracy: float


class SplitResult(BaseModel):
    """One split as the chosen candidate predicts it. Metrics: accuracy, macro_f1."""

    rows: int
    metrics: dict[str, Estimate]


class BaselineReport(Report):
    """The candidates, the chosen one and its metrics."""

    candidates: list[Candidate]
    chosen: Candidate
    majority: Majority
    splits: dict[str, SplitResult]


@dataclass(frozen=True)
class Fitted:
    """A candidate with what it needs to predict."""

    found: Candidate
    vectorizer: Any
    classifier: Any

    @property
    def rank(self) -> tuple[float, float, int, float]:
        """Smaller is better: accuracy, then loss, then the fewer n-grams and the stronger regularisation."""
        found = self.found
        return -found.validation_accuracy, found.validation_loss, found.ngram_range, found.C


def run(
    paths: BaselinePaths,
    params: BaselineParams,
    task: TaskType,
    seed: Annotated[int, Key("seed")],
    bootstrap_samples: Annotated[int, Key("evaluate.bootstrap_samples")],
    confidence_level: Annotated[float, Key("evaluate.confidence_level")],
) -> BaselineReport:
    """Fit every candidate on train, choose on validation, predict validation and test."""
    import numpy as np
    import pyarrow as pa
    from threadpoolctl import threadpool_limits

    require_pass(paths.data_passed, "prepared", sha256_tree(paths.prepared))
    splits = {split: read_parquet(paths.prepared / f"{split}.parquet") for split in ("train", *JUDGED_SPLITS)}
    names: list[str] = task.params.labels
    index = {name: position for position, name in enumerate(names)}
    labels = {split: np.array([index[name] for name in rows["label"].to_pylist()]) for split, rows in splits.items()}
    texts = {split: rows["text"].to_pylist() for split, rows in splits.items()}

    # Sparse products run on one thread anyway; more of them would only spin at the dot products in between.
    with threadpool_limits(1):
        candidates = _fit_all(params, texts, labels)
        chosen = min(candidates, key=lambda candidate: candidate.rank)
        probabilities = {
            split: chosen.classifier.predict_proba(chosen.vectorizer.transform(texts[split])) for split in JUDGED_SPLITS
        }
    tables = [_predictions(splits[split], split, probabilities[split], names) for split in JUDGED_SPLITS]
    write_parquet(pa.concat_tables(tables).combine_chunks(), paths.baseline_predictions)

    results = {}
    for split in JUDGED_SPLITS:
        predicted = probabilities[split].argmax(axis=1)
        statistics = {
            "accuracy": mean(predicted == labels[split]),
            "macro_f1": macro_f1(labels[split], predicted, len(names)),
        }
        rows = len(predicted)
        metrics = bootstrap(statistics, rows, bootstrap_samples, confidence_level, seed)
        results[split] = SplitResult(rows=rows, metrics=metrics)
    commonest = int(np.bincount(labels["train"], minlength=len(names)).argmax())
    rows_in = sum(rows.num_rows for rows in splits.values())
    return BaselineReport(
        rows=RowAccount(rows_in=rows_in, rows_kept=rows_in),
        candidates=[candidate.found for candidate in candidates],
        chosen=chosen.found,
        majority=Majority(label=names[commonest], test_accuracy=float(np.mean(labels["test"] == commonest))),
        splits=results,
    )


def _fit_all(params: BaselineParams, texts: dict[str, list[str]], labels: dict[str, np.ndarray]) -> list[Fitted]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, log_loss

    fitted = []
    for longest in params.ngram_range:
        vectorizer = TfidfVectorizer(ngram_range=(1, longest), min_df=params.min_df, sublinear_tf=params.sublinear_tf)
        try:
            train = vectorizer.fit_transform(texts["train"])
        except ValueError as error:
            raise UserError(
                f"baseline: no n-gram of words stands in {params.min_df} rows of train. Lower baseline.min_df."
            ) from error
        validation = vectorizer.transform(texts["validation"])
        for strength in params.C:
            # newton-cg needs no random order, and a tenth of lbfgs's time on short texts.
            classifier = LogisticRegression(C=strength, solver="newton-cg", max_iter=1000)
            classifier.fit(train, labels["train"])
            probabilities = classifier.predict_proba(validation)
            found = Candidate(
                ngram_range=longest,
                C=strength,
                features=train.shape[1],
                validation_accuracy=float(accuracy_score(labels["validation"], probabilities.argmax(axis=1))),
                validation_loss=float(log_loss(labels["validation"], probabilities, labels=classifier.classes_)),
            )
            fitted.append(Fitted(found, vectorizer, classifier))
    return fitted


def _predictions(rows: pa.Table, split: str, probabilities: np.ndarray, names: list[str]) -> pa.Table:
    import pyarrow as pa

    columns: dict[str, Any] = {
        "row_id": rows["row_id"],
        "split": [split] * rows.num_rows,
        "label": rows["label"],
        "predicted": [names[position] for position in probabilities.argmax(axis=1)],
    }
    columns |= {f"probability_{name}": probabilities[:, position] for position, name in enumerate(names)}
    return pa.table(columns)


if __name__ == "__main__":
    run_stage(run)
