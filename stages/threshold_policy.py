"""Thresholds by group, fitted on validation and measured on test: a policy of its own, which nothing here applies.

Reads   paths.predictions       probabilities of validation and test
        paths.prepared          their rows, for the groups
        paths.lexicon           identity terms, for the groups of a text
Writes  paths.threshold_policy  for each group when to predict the favourable label; {} where there is no policy
Report  paths.reports/threshold_policy.json: accuracy beside fairness, without and with the policy

Made where `mitigate.method` is threshold_optimizer. It needs a row's group at inference, which plain prediction never
asks for; so the export carries the file and leaves it to who has the right to use it. In two labels only.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field

from tunewright.errors import UserError
from tunewright.files import read_parquet, write_json
from tunewright.groups import AND, attributes, groups_of_rows, read_lexicon
from tunewright.params import Section
from tunewright.privacy import mask
from tunewright.report import Report
from tunewright.stage import Dep, Key, Out, Paths, run_stage
from tunewright.task import TaskType

if TYPE_CHECKING:
    import numpy as np

SPLITS = ("validation", "test")


class ThresholdPolicyParams(Section):
    """The section `threshold_policy`."""

    constraint: Literal[
        "demographic_parity",
        "equalized_odds",
        "true_positive_rate_parity",
        "false_positive_rate_parity",
        "selection_rate_parity",
    ] = Field(description="what Fairlearn's ThresholdOptimizer makes equal; accuracy is maximised under it")


class ThresholdPolicyPaths(Paths):
    predictions: Dep
    prepared: Dep
    lexicon: Dep
    threshold_policy: Out


class GroupRates(BaseModel):
    """Of one group of test. A rate is None where the group has no row that it is of."""

    rows: int
    selection_rate: float
    """Of the favourable prediction."""
    true_positive_rate: float | None
    false_positive_rate: float | None


class Outcome(BaseModel):
    """Test, without or with the policy. Only groups that the policy has a rule for stand in the differences."""

    accuracy: float
    groups: dict[str, GroupRates]
    demographic_parity_difference: float
    """The largest selection rate of a group less the smallest."""
    equalized_odds_difference: float | None
    """The larger of the same of true and of false positive rates (Fairlearn's definition)."""


class ThresholdPolicyReport(Report):
    constraint: str | None = None
    sensitive_feature: str | None = None
    plain: list[str] = Field(default_factory=list)
    """Groups without a rule, because validation has fewer than min_group_size rows of them, or one label only: they are
    predicted plainly."""
    before: Outcome | None = None
    after: Outcome | None = None


def run(
    paths: ThresholdPolicyPaths,
    params: ThresholdPolicyParams,
    task: TaskType,
    method: Annotated[str, Key("mitigate.method")],
    feature: Annotated[str | None, Key("mitigate.sensitive_feature")],
    audit: Annotated[Any, Key("audit_data")],
    privacy: Annotated[Any, Key("prepare.privacy")],
) -> ThresholdPolicyReport:
    """Fit Fairlearn's ThresholdOptimizer on validation; measure on test by its probabilities, so without any chance.

    Source: M. Hardt, E. Price, N. Srebro, Equality of opportunity in supervised learning, NeurIPS 2016.

    Raises
        UserError  where a job has not two labels, or validation has no two groups to fit on.
    """
    if method != "threshold_optimizer" or feature is None:
        write_json(paths.threshold_policy, {})
        return ThresholdPolicyReport(applies=False)
    faults = check(task, method)
    if faults:
        raise UserError("\n".join(faults))
    import numpy as np

    predictions = read_parquet(paths.predictions).to_pylist()
    favourable = audit.favourable_label
    split: dict[str, tuple[np.ndarray, np.ndarray, list[str]]] = {}
    pair = next((pair for pair in audit.intersections if AND.join(pair) == feature), None)
    named = ([], audit.reference_groups, [pair]) if pair else ([feature], audit.reference_groups, [])
    lexicon = read_lexicon(paths.lexicon, audit.identity_terms, audit.excluded_terms)
    for name in SPLITS:
        path = paths.prepared / f"{name}.parquet"
        rows = read_parquet(path)
        found = [row for row in predictions if row["split"] == name]
        if [row["row_id"] for row in found] != rows["row_id"].to_pylist():
            raise UserError(f"{paths.predictions}: other rows of {name} than in the prepared data. Run `dvc repro`.")
        (attribute,) = attributes(rows, *named, lexicon, partial(mask, params=privacy), path)
        scores = np.array([row[f"probability_{favourable}"] for row in found])
        labels = np.array([row["label"] == favourable for row in found])
        split[name] = scores, labels, groups_of_rows(attribute, rows.num_rows)
    scores, labels, groups = split["validation"]
    fitted = sorted(
        group
        for group in set(groups)
        if len(own := labels[np.array(groups) == group]) >= audit.min_group_size and 0 < own.sum() < len(own)
    )
    if len(fitted) < 2:
        raise UserError(
            f"mitigate.sensitive_feature: validation has {len(fitted)} group(s) of {feature} with both labels and "
            f"audit_data.min_group_size: {audit.min_group_size} rows; expected two. Take more rows, or another method."
        )
    rules = _fit(scores, labels, groups, fitted, params.constraint)
    write_json(
        paths.threshold_policy,
        {
            "sensitive_feature": feature,
            "favourable_label": favourable,
            "other_label": next(name for name in task.label_names if name != favourable),
            "constraint": params.constraint,
            "score": f"probability of {favourable}",
            "groups": rules,
        },
    )
    scores, labels, groups = split["test"]
    plain = (scores >= 0.5).astype(float)
    chosen = np.array(
        [
            probability(score, rules[group]) if group in rules else own
            for score, group, own in zip(scores.tolist(), groups, plain.tolist(), strict=True)
        ]
    )
    return ThresholdPolicyReport(
        constraint=params.constraint,
        sensitive_feature=feature,
        plain=sorted(set(groups) - set(rules)),
        before=_outcome(plain, labels, groups, rules),
        after=_outcome(chosen, labels, groups, rules),
    )


def check(task: TaskType, method: Annotated[str, Key("mitigate.method")]) -> list[str]:
    """What can be seen wrong before anything runs: a policy is of two labels."""
    if method == "threshold_optimizer" and len(task.label_names) != 2:
        return [f"mitigate.method: threshold_optimizer needs two task.labels; found {len(task.label_names)}."]
    return []


def probability(score: float, rule: dict[str, Any]) -> float:
    """How probably a row of this score is predicted favourable: each operation is taken with its own probability, and
    a constant replaces them with `p_ignore`."""
    taken = sum(
        operation["probability"]
        * (score > operation["threshold"] if operation["operator"] == ">" else score < operation["threshold"])
        for operation in rule["operations"]
    )
    return float(rule["p_ignore"] * rule["prediction_constant"] + (1 - rule["p_ignore"]) * taken)


def _fit(
    scores: np.ndarray, labels: np.ndarray, groups: list[str], fitted: list[str], constraint: str
) -> dict[str, dict[str, Any]]:
    import numpy as np
    from fairlearn.postprocessing import ThresholdOptimizer
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Scores(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
        """The classifier whose scores are its input (N, 1), as Fairlearn asks one."""

        classes_ = (0, 1)

        def __sklearn_is_fitted__(self) -> bool:
            return True

        def fit(self, *_: Any) -> Scores:
            return self

        def predict_proba(self, given: Any) -> np.ndarray:
            column = np.asarray(given)[:, 0]
            return np.stack([1 - column, column], axis=1)

    of = np.array(groups)
    kept = np.isin(of, fitted)
    optimizer = ThresholdOptimizer(
        estimator=Scores(), constraints=constraint, prefit=True, predict_method="predict_proba"
    )
    optimizer.fit(scores[kept, None], labels[kept].astype(int), sensitive_features=of[kept])
    rules = {}
    for group, found in optimizer.interpolated_thresholder_.interpolation_dict.items():
        operations = [(found.p0, found.operation0), (found.p1, found.operation1)]
        rules[str(group)] = {
            "operations": [
                {
                    "probability": float(share),
                    "operator": operation.operator,
                    # A score lies from 0 to 1: −1 and 2 are Fairlearn's infinities, which no JSON holds.
                    "threshold": min(max(float(operation.threshold), -1.0), 2.0),
                }
                for share, operation in operations
                if share > 0
            ],
            "p_ignore": float(found.get("p_ignore", 0.0)),
            "prediction_constant": float(found.get("prediction_constant", 0.0)),
        }
    return rules


def _outcome(chosen: np.ndarray, labels: np.ndarray, groups: list[str], rules: dict[str, Any]) -> Outcome:
    """chosen: (N,) the probability of the favourable prediction."""
    import numpy as np

    of = np.array(groups)
    rates = {}
    for group in sorted(set(groups)):
        inside = of == group
        rates[group] = GroupRates(
            rows=int(inside.sum()),
            selection_rate=float(chosen[inside].mean()),
            true_positive_rate=float(chosen[inside & labels].mean()) if (inside & labels).any() else None,
            false_positive_rate=float(chosen[inside & ~labels].mean()) if (inside & ~labels).any() else None,
        )
    ruled = [found for group, found in rates.items() if group in rules]
    spreads = []
    for name in ("true_positive_rate", "false_positive_rate"):
        values = [value for found in ruled if (value := getattr(found, name)) is not None]
        spreads.append(max(values) - min(values) if len(values) > 1 else None)
    known = [spread for spread in spreads if spread is not None]
    selected = [found.selection_rate for found in ruled]
    return Outcome(
        accuracy=float(np.where(labels, chosen, 1 - chosen).mean()),
        groups=rates,
        demographic_parity_difference=max(selected) - min(selected) if selected else 0.0,
        equalized_odds_difference=max(known) if known else None,
    )


if __name__ == "__main__":
    run_stage(run)
