"""The table of measures by hand: the code agrees with it, it leaves none out, and the docs show it as it is."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from benchmarks.hand_worked import (
    ACROSS,
    AGAINST,
    AUCS,
    COMPLETIONS,
    DATA,
    GROUP,
    MEMORIZATION,
    PREFERENCE,
    lines,
    markdown,
    worked_out,
)
from stages import memorization, suites
from tunewright import data_bias, group_metrics

DOCS = Path(__file__).parents[2] / "docs/fairness.md"


def test_the_code_agrees_with_the_arithmetic_and_the_docs_show_it() -> None:
    found = lines()
    assert {line.measure: line.difference for line in found if not line.difference <= 1e-9} == {}
    assert len({line.measure for line in found}) == len(found)
    assert markdown(found) in DOCS.read_text(encoding="utf-8")


def test_no_measure_is_left_out() -> None:
    others = {"rows", "reference_rows", "low", "high", "impact_low", "impact_high", "intervals_by_label", "intervals"}
    assert {name.partition(" ")[0] for name in DATA} == set(data_bias.Comparison.model_fields) - others - {"verdict"}
    for told, model in (
        (GROUP, group_metrics.Group),
        (AGAINST, group_metrics.Comparison),
        (ACROSS, group_metrics.Across),
        (AUCS, group_metrics.GroupAuc),
    ):
        measures = {name for name, field in model.model_fields.items() if field.annotation is group_metrics.Measure}
        assert set(told) == measures
    for told, models in (
        (PREFERENCE, (suites.Preference,)),
        (COMPLETIONS, (suites.GroupReport,)),
        (MEMORIZATION, (memorization.Attack, memorization.Exposed)),
    ):
        estimates = {
            name
            for model in models
            for name, field in model.model_fields.items()
            if "Estimate" in str(field.annotation)
        }
        assert estimates and estimates <= {name.split()[0].rstrip(",") for name in told}


def test_arithmetic_is_exact_where_nothing_in_it_is_irrational() -> None:
    assert worked_out("1/3 + 1/6 - max(1/4, 1/5)**2") == Fraction(7, 16)
    assert worked_out("2 * ln(1) + sqrt(4)") == 2.0
    for wrong in ("x", "1.5", "open(1)"):
        with pytest.raises((ValueError, KeyError)):
            worked_out(wrong)
