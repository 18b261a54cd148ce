"""Every measure of fairness and of memorization worked out by hand, beside what the code says: the table of
docs/fairness.md, in Markdown.

    python -m benchmarks.hand_worked

The arithmetic in the second column is what is calculated: by Python's fractions, exactly, and by `math` where it takes
a logarithm or a root, or z, the normal quantile of an interval of 95%. Nothing of the code under test has a part in it.
tests/unit/test_hand_worked.py holds each difference to 1e-9, and the docs to this table.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any

from stages.mitigate import reweigh
from stages.suites import attribute_report, pair_gaps, preference
from tunewright.counterfactual import flips
from tunewright.data_bias import Comparison, FeatureReport, Rows, measure, terms
from tunewright.group_metrics import Rules, Scored, group_aucs, measure_groups
from tunewright.groups import Attribute, Lexicon
from tunewright.memorization import auc, exposure, tpr_at_fpr
from tunewright.suites import FEMALE, MALE, Pair

# (group, label) → rows by stratum: a has 120 rows, d has 80.
TRAIN = {
    ("a", "pos"): (20, 40),
    ("a", "neg"): (30, 10),
    ("a", "odd"): (10, 10),
    ("d", "pos"): (5, 15),
    ("d", "neg"): (45, 15),
}
LABELS = ("pos", "neg", "odd")
LIMITS = SimpleNamespace(
    favourable_label="pos",
    min_group_size=30,
    min_gate_group_size=100,
    difference_warn=0.1,
    difference_fail=0.2,
    min_disparate_impact=0.8,
    confidence_level=0.95,
)
# (actual, predicted) → rows of test, of which the prediction has the probability beside the group.
TEST = {
    ("a", 0.8): {(1, 1): 3, (0, 1): 1, (1, 0): 3, (0, 0): 3},
    ("d", 0.9): {(1, 1): 1, (0, 1): 1, (1, 0): 2, (0, 0): 2},
}
RULES = Rules(
    min_group_size=2, min_gate_group_size=10, confidence_level=0.9, bootstrap_samples=100, calibration_bins=5, seed=0
)

DATA = {  # the field of data_bias.Comparison → its arithmetic
    "class_imbalance": "(120 - 80) / (120 + 80)",
    "difference_in_proportions": "60/120 - 20/80",
    "disparate_impact": "((20 + 1/2) / (80 + 1)) / ((60 + 1/2) / (120 + 1))",
    "difference_by_label pos": "60/120 - 20/80",
    "difference_by_label neg": "40/120 - 60/80",
    "difference_by_label odd": "20/120 - 0/80",
    "kl_divergence": (
        "121/243 * ln(121/243 / (41/163)) + 81/243 * ln(81/243 / (121/163)) + 41/243 * ln(41/243 / (1/163))"
    ),
    "js_divergence": ("1/2 * (1/2 * ln(4/3) + 1/3 * ln(8/13) + 1/6 * ln(2)) + 1/2 * (1/4 * ln(2/3) + 3/4 * ln(18/13))"),
    "lp_norm": "sqrt((1/4)**2 + (5/12)**2 + (1/6)**2)",
    "total_variation": "1/2 * (1/4 + 5/12 + 1/6)",
    "kolmogorov_smirnov": "max(1/4, 5/12, 1/6)",
    "demographic_disparity": "60/120 - 20/80",
    "conditional_demographic_disparity": "(110 * (45/85 - 5/25) + 90 * (15/35 - 15/55)) / 200",
}
GROUP = {  # the field of group_metrics.Group → the arithmetic of a, of d
    "accuracy": ("(3 + 3)/10", "(1 + 2)/6"),
    "macro_f1": ("(6/(6 + 1 + 3) + 6/(6 + 1 + 3)) / 2", "(2/(2 + 1 + 2) + 4/(4 + 1 + 2)) / 2"),
    "true_positive_rate": ("3/(3 + 3)", "1/(1 + 2)"),
    "false_positive_rate": ("1/(1 + 3)", "1/(1 + 2)"),
    "selection_rate": ("(3 + 1)/10", "(1 + 1)/6"),
    "calibration_error": ("abs(6/10 - 8/10)", "abs(3/6 - 9/10)"),
}
AGAINST = {  # the field of group_metrics.Comparison
    "selection_rate_difference": "4/10 - 2/6",
    "disparate_impact": "((2 + 1/2) / (6 + 1)) / ((4 + 1/2) / (10 + 1))",
    "recall_difference": "3/6 - 1/3",
    "false_positive_rate_difference": "1/4 - 1/3",
    "accuracy_difference": "6/10 - 3/6",
    "treatment_equality": "2/1 - 3/1",
}
ACROSS = {  # the field of group_metrics.Across
    "demographic_parity_difference": "4/10 - 2/6",
    "demographic_parity_ratio": "(2/6) / (4/10)",
    "equalized_odds_difference": "max(3/6 - 1/3, 1/3 - 1/4)",
    "equalized_odds_ratio": "min((1/3) / (3/6), (1/4) / (1/3))",
}
AUCS = {  # the field of group_metrics.GroupAuc, of d: pairs that are won, a tie counting half, of all pairs
    "subgroup_auc": "(1/2 * 1 + 1 * 2 + 1/2 * 4) / (3 * 3)",
    "bpsn_auc": "(3 * 2 + 3 * 2) / (6 * 3)",
    "bnsp_auc": "1 * 4 / (3 * 4)",
}
WEIGHTS = {  # (group, label) → P(g) P(y) / P(g, y)
    ("a", "pos"): "120/200 * 80/200 / (60/200)",
    ("a", "neg"): "120/200 * 100/200 / (40/200)",
    ("a", "odd"): "120/200 * 20/200 / (20/200)",
    ("d", "pos"): "80/200 * 80/200 / (20/200)",
    ("d", "neg"): "80/200 * 100/200 / (60/200)",
}
# (the gender that the stereotype expects, ln p of the sentence with "he", with "she"): two preferred, one not, a tie.
PAIRS = ((MALE, -10, -12), (FEMALE, -9, -8), (FEMALE, -7, -8), (MALE, -5, -5))
# group → (template, what was written), of which "vile" is hurtful and "I cannot" refuses.
WRITTEN = {
    "men": (("was", "kind"), ("was", "vile"), ("went", "I cannot say"), ("went", "far away")),
    "women": (
        ("was", "vile vile"),
        ("was", "very vile"),
        ("went", "vile"),
        ("went", "I cannot"),
        ("went", "a vile place"),
        ("is", "kind"),  # a template that the men have not
    ),
}
PREFERENCE = {  # of stages.suites.Preference and PairReport
    "share": "2/3",
    "share, low": "(2 + z**2/2 - z * sqrt(2*1/3 + z**2/4)) / (3 + z**2)",
    "share, high": "(2 + z**2/2 + z * sqrt(2*1/3 + z**2/4)) / (3 + z**2)",
    "gap in ln p": "(0 - 2 + 1 - 1 + 0) / 4",
}
COMPLETIONS = {  # the field of stages.suites.GroupReport → of the women, and how that differs from the men
    "hurtful": ("4/6", "4/6 - 1/4"),
    "refused": ("1/6", "1/6 - 1/4"),
    "words": ("(2 + 2 + 1 + 2 + 3 + 1) / 6", "((2 - 1) + (2 - 5/2)) / 2"),
}
# What rows of train and rows held out cost the model; a secret that was planted, and seven that were drawn.
LOSSES = ((1, 2, 2, 4), (2, 3, 5))
SECRETS = (2, (1, 3, 4, 5, 6, 7, 8))
MEMORIZATION = {
    "auc": "(3 + 5/2 + 5/2 + 1) / (4 * 3)",
    # DeLong's variance: of the shares 1, 5/6, 5/6, 1/3 of the members, and 1/2, 3/4, 1 of the others.
    "auc, low": (
        "3/4 - z * sqrt(((1/4)**2 + (1/12)**2 + (1/12)**2 + (5/12)**2) / 3 / 4 + ((1/4)**2 + 0 + (1/4)**2) / 2 / 3)"
    ),
    "tpr at an fpr of 1/3": "3/4",
    "exposure": "ln((7 + 1) / (1 + 1)) / ln(2)",
}


@dataclass(frozen=True)
class Line:
    """One measure: its arithmetic, and what the code says."""

    measure: str
    arithmetic: str
    code: float

    @property
    def by_hand(self) -> Fraction | float:
        return worked_out(self.arithmetic)

    @property
    def difference(self) -> float:
        return abs(float(self.by_hand) - self.code)


OPERATORS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
FUNCTIONS: Mapping[str, Callable[..., Any]] = {"ln": math.log, "sqrt": math.sqrt, "max": max, "min": min, "abs": abs}
Z = NormalDist().inv_cdf(0.975)


def worked_out(arithmetic: str) -> Fraction | float:
    """The value of whole numbers and z with + - * / ** and FUNCTIONS; a fraction where nothing is irrational."""

    def value(node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=int(number)):
                return Fraction(number)
            case ast.Name(id="z"):
                return Z
            case ast.BinOp(left=left, op=op, right=right):
                return OPERATORS[type(op)](value(left), value(right))
            case ast.Call(func=ast.Name(id=name), args=arguments):
                return FUNCTIONS[name](*map(value, arguments))
        raise ValueError(f"{arithmetic}: found {ast.dump(node)}")

    found: Fraction | float = value(ast.parse(arithmetic, mode="eval").body)
    return found


def lines() -> list[Line]:
    """Every measure of the data, of a classifier, of a generator, and of what a model has memorized."""
    return [*_of_data(), *_of_model(), *_of_generator(), *_of_memory()]


def _of_data() -> Iterable[Line]:
    import numpy as np

    cells = [
        (group, label, stratum)
        for (group, label), counts in TRAIN.items()
        for stratum, count in enumerate(counts)
        for _ in range(count)
    ]
    groups = [group for group, _, _ in cells]
    labels = np.array([LABELS.index(label) for _, label, _ in cells])
    rows = Rows(
        names=LABELS,
        labels=labels,
        characters=np.array([2 if group == "a" else 5 for group in groups]),
        weights=np.ones(len(cells)),
        strata=np.array([stratum for _, _, stratum in cells]),
        gaps={"town": np.array([stratum == 0 and group == "d" for group, _, stratum in cells])},
    )
    of_a = np.array(groups) == "a"
    report: FeatureReport = measure(Attribute("who", {"a": of_a, "d": ~of_a}, 0, "a"), rows, LIMITS)
    found = report.groups["d"].against_reference
    assert isinstance(found, Comparison)
    for name, arithmetic in DATA.items():
        field, _, label = name.partition(" ")
        value = getattr(found, field)
        yield Line(f"data: {name.replace('_', ' ')}", arithmetic, value[label] if label else value)
    yield Line("data: favourable rate of d", "20/80", report.groups["d"].favourable_rate)
    yield Line("data: mean characters of d", "(80 * 5) / 80", report.groups["d"].mean_characters)
    yield Line("data: missing values of d", "(5 + 45) / 80", report.groups["d"].missing["town"])
    made, _ = reweigh(groups, labels, list(LABELS))
    weights = {(cell.groups, cell.label): cell.weight for cell in made}
    for (group, label), arithmetic in WEIGHTS.items():
        yield Line(f"data: reweighing, {group} and {label}", arithmetic, weights[group, label])
    # "she" stands in 6 favourable and 3 other rows, and not in 4 and 9.
    texts = ["she"] * 9 + ["it"] * 13
    favourable = np.array([True] * 6 + [False] * 3 + [True] * 4 + [False] * 9)
    (term,) = terms(texts, favourable, Lexicon({"gender": {"women": ("she",)}}), LIMITS)
    odds = "ln((6 + 1/2) * (9 + 1/2) / ((3 + 1/2) * (4 + 1/2)))"
    yield Line("data: log-odds of an identity term", odds, term.log_odds.value)


def _of_model() -> Iterable[Line]:
    import numpy as np

    listed = [
        (group, actual, predicted, sure)
        for (group, sure), counts in TEST.items()
        for (actual, predicted), count in counts.items()
        for _ in range(count)
    ]
    actual, predicted = (np.array([row[at] for row in listed]) for at in (1, 2))
    favourable = np.array([sure if answer else 1 - sure for _, _, answer, sure in listed])
    scored = Scored(actual, predicted, np.stack([1 - favourable, favourable], axis=1), ("no", "yes"), favourable=1)
    members = {group: [at for at, row in enumerate(listed) if row[0] == group] for group in ("a", "d")}
    groups, across, _ = measure_groups(scored, members, "a", RULES)
    for name, both in GROUP.items():
        for group, arithmetic in zip(("a", "d"), both, strict=True):
            yield _line(f"{name} of {group}", arithmetic, getattr(groups[group], name).value)
    for name, arithmetic in AGAINST.items():
        yield _line(name, arithmetic, getattr(groups["d"].comparison, name).value)
    for name, arithmetic in ACROSS.items():
        yield _line(name, arithmetic, getattr(across, name).value)
    of_d = next(one for one in group_aucs(scored, members, RULES) if one.group == "d")
    for name, arithmetic in AUCS.items():
        yield _line(f"{name} of d", arithmetic, getattr(of_d, name).value)
    before, after = ["yes", "yes", "no", "no", "no"], ["yes", "no", "no", "yes", "no"]
    _, rate, change = flips(before, after, np.array([0.1, -0.6, 0.0, 0.5, -0.2]), RULES)
    yield _line("flip rate", "2/5", rate.value)
    yield _line("mean |Δp|", "(1/10 + 6/10 + 0 + 5/10 + 2/10) / 5", change.value)


def _of_generator() -> Iterable[Line]:
    pairs = [Pair({}, stereotype) for stereotype, _, _ in PAIRS]
    likelihoods = [{MALE: float(he), FEMALE: float(she)} for _, he, she in PAIRS]
    share = preference(pairs, likelihoods, 0.95).share
    assert share is not None
    gap = pair_gaps(likelihoods, 100, 0.95, 0)[FEMALE]
    for (name, arithmetic), code in zip(
        PREFERENCE.items(), (share.value, share.low, share.high, gap.value), strict=True
    ):
        yield Line(f"generator: stereotypes preferred, {name}", arithmetic, code)
    found = attribute_report(WRITTEN, {"vile": "ps"}, ["i cannot"], 100, 0.95, 0)
    for name, (of_women, difference) in COMPLETIONS.items():
        value = getattr(found.groups["women"], name)
        yield Line(f"generator: {name} of women", of_women, value if name == "words" else value.value)
        yield Line(f"generator: {name}, difference", difference, found.gaps["women"][name].value)


def _of_memory() -> Iterable[Line]:
    import numpy as np

    members, others = (np.array(losses, dtype=float) for losses in LOSSES)
    area = auc(members, others, 0.95)
    caught = tpr_at_fpr(members, others, 1 / 3, 100, 0.95, 0)
    assert caught is not None
    values = (area.value, area.low, caught.value, exposure(*SECRETS, 0.95).value)
    for (name, arithmetic), code in zip(MEMORIZATION.items(), values, strict=True):
        yield Line(f"memorization: {name}", arithmetic, code)


def _line(name: str, arithmetic: str, code: float | None) -> Line:
    assert code is not None, name
    return Line(f"model: {name.replace('_', ' ').replace('|', chr(92) + '|')}", arithmetic, code)


def markdown(lines: Sequence[Line]) -> str:
    """The table. A difference below 1e-14 is the last digits of doubles, which are not the same on every machine."""
    rows = ["| measure | by hand | exactly | the code | difference |", "|---|---|---|---|---|"]
    for line in lines:
        by_hand = line.by_hand
        exactly = str(by_hand) if isinstance(by_hand, Fraction) else f"{by_hand:.12f}"
        difference = "< 1e-14" if line.difference < 1e-14 else f"{line.difference:.0e}"
        cells = (line.measure, f"`{line.arithmetic}`", exactly, f"{line.code + 0.0:.12f}", difference)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(markdown(lines()))
