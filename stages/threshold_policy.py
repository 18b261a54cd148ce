"""Thresholds by group, fitted on validation and measured on test: a policy of its own, which nothing here applies.

Reads   paths.predictions       probabilities of validation and test
        paths.prepared          their rows, for the groups
        paths.lexicon           identity terms, for the groups of a text
Writes  paths.threshold_policy  for each group when to predict the favourable label; {} where there is no policy
Report  paths.reports/threshold_policy.json: accuracy beside fairness, without and with the policy, with intervals

Made where `mitigate.method` is threshold_optimizer. It needs a row's group at inference, which plain prediction never
asks for; so the export carries the file and leaves it to who has the right to use it. In two labels only.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field

from tunewright.errors import UserError
from tunewright.files import read_parquet, write_json
from tunewright.group_metrics import Measure
from tunewright.groups import AND, attributes, groups_of_rows, read_lexicon
from tunewright.params import Section
from tunewright.privacy import mask
from tunewright.report import Report
from tunewright.stage import Dep, Key, Out, Paths, run_stage
from tunewright.statistics import BOOTSTRAP_SAMPLES, BOOTSTRAP_SEED, stratified_bootstrap, wilson_interval
from tunewright.task import TaskType

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from tunewright.statistics import StratifiedStatistic

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
    """Of one group of test, each with Wilson's interval. A rate is None where the group has no row that it is of.

    What the policy predicts by chance counts with its probability, and its interval is that of predictions drawn so.
    """

    rows: int
    selection_rate: Measure
    """Of the favourable prediction."""
    true_positive_rate: Measure
    false_positive_rate: Measure


class Fairness(BaseModel):
    """Accuracy beside fairness. Only groups that the policy has a rule for stand in the differences."""

    accuracy: Measure
    demographic_parity_difference: Measure
    """The largest selection rate of a group less the smallest."""
    equalized_odds_difference: Measure
    """The larger of the same of true and of false positive rates (Fairlearn's definition)."""


class Outcome(Fairness):
    """Test, without or with the policy. Accuracy has Wilson's interval, the differences that of a bootstrap within each
    group: a largest less a smallest is never negative and the larger by chance, so near 0 it lies too high; where all
    rows of a kind are predicted alike it has no width."""

    groups: dict[str, GroupRates]


class ThresholdPolicyReport(Report):
    constraint: str | None = None
    sensitive_feature: str | None = None
    plain: list[str] = Field(default_factory=list)
    """Groups without a rule, because validation has fewer than min_group_size rows of them, or one label only: they are
    predicted plainly."""
    confidence_level: float | None = None
    """Of every interval. Fewer rows than audit_data.min_group_size have none, nor a difference where one of its groups
    has so few."""
    before: Outcome | None = None
    after: Outcome | None = None
    change: Fairness | None = None
    """After less before: the bootstrap is paired, both are measured on the same resamples of test."""


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
    before, after, change = _measured((plain, chosen), labels, np.array(groups), sorted(rules), audit)
    return ThresholdPolicyReport(
        constraint=params.constraint,
        sensitive_feature=feature,
        plain=sorted(set(groups) - set(rules)),
        confidence_level=audit.confidence_level,
        before=before,
        after=after,
        change=change,
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

    class Scores(ClassifierMixin, BaseEstimator):
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


def _measured(
    chosen: tuple[np.ndarray, np.ndarray], labels: np.ndarray, groups: np.ndarray, ruled: list[str], audit: Any
) -> tuple[Outcome, Outcome, Fairness]:
    """Test before and after, and the change.

    chosen: of each the probability of the favourable prediction (N,).   labels: (N,) bool.   groups: (N,) names.
    ruled: the groups that have a rule.   audit: the section `audit_data`, for what is enough and how sure to be.
    """
    import numpy as np

    members = {str(group): np.flatnonzero(groups == group) for group in np.unique(groups)}
    sizes = {group: len(rows) for group, rows in members.items()}
    compared = {group: rows for group, rows in members.items() if group in ruled}
    fewest = {"accuracy": len(labels)} | dict.fromkeys(SPREADS, min(map(len, compared.values()), default=0))
    before, after = (_statistics(share, labels, members, compared) for share in chosen)
    change = {name: _less(before[name], later) for name, later in after.items()}
    kinds = {"before": before, "after": after, "change": change}
    statistics = {f"{when} {name}": found for when, kind in kinds.items() for name, found in kind.items()}
    levels = dict.fromkeys(statistics, audit.confidence_level)
    drawn = stratified_bootstrap(statistics, sizes, BOOTSTRAP_SAMPLES, levels, BOOTSTRAP_SEED)
    once = {group: np.ones((1, size)) for group, size in sizes.items()}

    def measures(when: str) -> dict[str, Measure]:
        found = {}
        for name, rows in fewest.items():
            if (statistic := kinds[when].get(name)) is None:
                found[name] = Measure(value=None, rows=rows)
                continue
            low, high = drawn[f"{when} {name}"] or (None, None) if rows >= audit.min_group_size else (None, None)
            found[name] = Measure(value=float(statistic(once)[0]), low=low, high=high, rows=rows)
        return found

    def outcome(when: str, share: np.ndarray) -> Outcome:
        accuracy = _rate(np.where(labels, share, 1 - share), audit)
        rates = {
            group: GroupRates(
                rows=len(rows),
                selection_rate=_rate(share[rows], audit),
                true_positive_rate=_rate(share[rows][labels[rows]], audit),
                false_positive_rate=_rate(share[rows][~labels[rows]], audit),
            )
            for group, rows in members.items()
        }
        return Outcome(**measures(when) | {"accuracy": accuracy}, groups=rates)

    return outcome("before", chosen[0]), outcome("after", chosen[1]), Fairness(**measures("change"))


SPREADS = ("demographic_parity_difference", "equalized_odds_difference")
"""The largest rate of a group less the smallest."""


def _rate(taken: np.ndarray, audit: Any) -> Measure:
    """The mean of probabilities (n,), with Wilson's interval where they are enough."""
    rows = len(taken)
    if not rows:
        return Measure(value=None, rows=0)
    total = min(float(taken.sum()), rows)
    if rows < audit.min_group_size:
        return Measure(value=total / rows, rows=rows)
    low, high = wilson_interval(total, rows, audit.confidence_level)
    return Measure(value=total / rows, low=low, high=high, rows=rows)


def _statistics(
    share: np.ndarray, labels: np.ndarray, members: Mapping[str, np.ndarray], compared: Mapping[str, np.ndarray]
) -> dict[str, StratifiedStatistic]:
    """Accuracy and SPREADS of the weights by group; a spread is left out where fewer than two groups have a rate.

    share: the probability of the favourable prediction (N,).   members, compared: group → positions of its rows.
    """
    import numpy as np

    right = np.where(labels, share, 1 - share)

    def accuracy(weights: Mapping[str, np.ndarray]) -> np.ndarray:
        found: np.ndarray = sum(weights[group] @ right[rows] for group, rows in members.items()) / len(labels)
        return found

    def spread(kind: np.ndarray) -> StratifiedStatistic | None:
        of = {group: rows for group, rows in compared.items() if kind[rows].any()}
        if len(of) < 2:
            return None

        def statistic(weights: Mapping[str, np.ndarray]) -> np.ndarray:
            with np.errstate(invalid="ignore"):  # a resample without a row of the kind is undefined: NaN
                rates = [
                    (weights[group] @ (kind[rows] * share[rows])) / (weights[group] @ kind[rows].astype(float))
                    for group, rows in of.items()
                ]
            found: np.ndarray = np.max(rates, axis=0) - np.min(rates, axis=0)
            return found

        return statistic

    found: dict[str, StratifiedStatistic] = {"accuracy": accuracy}
    if (selected := spread(np.ones(len(labels), dtype=bool))) is not None:
        found["demographic_parity_difference"] = selected
    odds = [one for one in (spread(labels), spread(~labels)) if one is not None]
    if odds:
        found["equalized_odds_difference"] = lambda weights: np.max([one(weights) for one in odds], axis=0)
    return found


def _less(before: StratifiedStatistic, after: StratifiedStatistic) -> StratifiedStatistic:
    return lambda weights: after(weights) - before(weights)


if __name__ == "__main__":
    run_stage(run)
