"""Mend what the labels of the training rows owe to a group, before anything is trained: by weights, or by resampling.

Reads   paths.prepared          train.parquet
        paths.lexicon           identity terms, for the groups of a text
Writes  paths.training_weights  row_id, weight, copies of each row of train; no row where nothing is mended here
Report  paths.reports/mitigate.json: the data measures before and after, and the findings as they are after

`tokenize` makes of them the column sample_weight, or repeated rows. The gate judges the data as they are after the
mitigation, and says both values. Validation and test stay as they are.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from tunewright.data_bias import FeatureReport, findings, measure, rows_of
from tunewright.errors import UserError
from tunewright.files import read_parquet, write_parquet
from tunewright.gates import Finding
from tunewright.groups import AND, attributes, groups_of_rows, read_lexicon
from tunewright.params import Section
from tunewright.privacy import mask
from tunewright.report import Report, RowAccount
from tunewright.stage import Dep, Key, Out, Paths, run_stage
from tunewright.task import TaskType

if TYPE_CHECKING:
    import numpy as np


class MitigateParams(Section):
    """The section `mitigate`."""

    method: Literal["none", "reweigh", "resample", "threshold_optimizer"] = Field(
        description="reweigh and resample mend the training rows; threshold_optimizer is fitted after the training"
    )
    sensitive_feature: str | None = Field(description="one of audit_data's features or intersections")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.method == "none") != (self.sensitive_feature is None):
            raise ValueError("a sensitive_feature with every method but none")
        return self


class MitigatePaths(Paths):
    prepared: Dep
    lexicon: Dep
    training_weights: Out


class Cell(BaseModel):
    """The rows of train that stand in the same groups and have the same label."""

    groups: str
    label: str
    rows: int
    expected: float
    """n_g · n_y / n: so many there would be if label and groups were independent."""
    weight: float
    """expected / rows = P(g)P(y) / P(g, y)."""


class MitigateReport(Report):
    """`before` and `after`: the measures of audit_data without and with the weights, or copies."""

    method: str = "none"
    sensitive_feature: str | None = None
    cells: list[Cell] = Field(default_factory=list)
    before: FeatureReport | None = None
    after: FeatureReport | None = None
    replaced: list[Finding] = Field(default_factory=list)
    """Findings of audit_data whose place those below take at the gate."""
    findings: list[Finding] = Field(default_factory=list)


def run(
    paths: MitigatePaths,
    params: MitigateParams,
    task: TaskType,
    audit: Annotated[Any, Key("audit_data")],
    privacy: Annotated[Any, Key("prepare.privacy")],
    seed: Annotated[int, Key("seed")],
) -> MitigateReport:
    """Weigh the rows by P(g)P(y)/P(g, y), or draw so many of them as that expects.

    g: the groups that a row stands in, together; rows of no group are a cell of their own. Then label and groups are
    independent, and every difference between groups is 0, unless a cell has no row.

    Source: F. Kamiran, T. Calders, Data preprocessing techniques for classification without discrimination, Knowledge
    and Information Systems 33 (2012), sections 4.2 (reweighing) and 4.3 (sampling, here uniform).
    """
    import numpy as np
    import pyarrow as pa

    faults = check(params, task, audit)
    if faults:
        raise UserError("\n".join(faults))
    if params.method in ("none", "threshold_optimizer") or params.sensitive_feature is None:
        columns = {"row_id": pa.string(), "weight": pa.float64(), "copies": pa.int64()}
        write_parquet(pa.table({name: pa.array([], kind) for name, kind in columns.items()}), paths.training_weights)
        return MitigateReport(applies=False)
    path = paths.prepared / "train.parquet"
    train = read_parquet(path)
    pair = next((pair for pair in audit.intersections if AND.join(pair) == params.sensitive_feature), None)
    named = ([], audit.reference_groups, [pair]) if pair else ([params.sensitive_feature], audit.reference_groups, [])
    lexicon = read_lexicon(paths.lexicon, audit.identity_terms, audit.excluded_terms)
    (attribute,) = attributes(train, *named, lexicon, partial(mask, params=privacy), path)
    plain = rows_of(train, task.label_names, audit.strata_column)
    of_row = groups_of_rows(attribute, train.num_rows)
    cells, weights = reweigh(of_row, plain.labels, task.label_names)
    if params.method == "resample":
        copies = _drawn(of_row, plain.labels, cells, task.label_names, seed)
        weights = np.ones(train.num_rows)
    else:
        copies = np.ones(train.num_rows, dtype=np.int64)
    written = {"row_id": train.column("row_id"), "weight": pa.array(weights), "copies": pa.array(copies)}
    write_parquet(pa.table(written), paths.training_weights)

    before = measure(attribute, plain, audit)
    mended = rows_of(train, task.label_names, audit.strata_column, weights * copies)
    after = measure(attribute, mended, audit)
    left_out = int((copies == 0).sum())
    return MitigateReport(
        rows=RowAccount(
            rows_in=train.num_rows,
            rows_kept=train.num_rows - left_out,
            dropped={"not_drawn": left_out} if left_out else {},
        ),
        method=params.method,
        sensitive_feature=attribute.name,
        cells=cells,
        before=before,
        after=after,
        replaced=findings(attribute.name, before, audit),
        findings=findings(attribute.name, after, audit, before),
    )


def check(params: MitigateParams, task: TaskType, audit: Annotated[Any, Key("audit_data")]) -> list[str]:
    """What can be seen wrong before anything runs: labels that can't be weighed, a feature that is not audited."""
    if params.method == "none":
        return []
    if task.label_kind != "one":
        return [f"mitigate.method: found {params.method}; {task.params.type} has no single label of a row. Set none."]
    known = [*audit.sensitive_features, *(AND.join(pair) for pair in audit.intersections)]
    if params.sensitive_feature in known:
        return []
    names = ", ".join(known) or "it names none"
    return [f"mitigate.sensitive_feature: found {params.sensitive_feature!r}; audit_data names: {names}."]


def reweigh(of_row: list[str], labels: np.ndarray, names: list[str]) -> tuple[list[Cell], np.ndarray]:
    """The cells of groups (N) and labels (N,), and each row's weight (N,). The weights sum to N where no cell is
    empty."""
    import numpy as np

    of_label = [names[label] for label in labels]
    by_group, by_label = Counter(of_row), Counter(of_label)
    together = Counter(zip(of_row, of_label, strict=True))
    cells = []
    for (groups, label), rows in sorted(together.items()):
        expected = by_group[groups] * by_label[label] / len(of_row)
        cells.append(Cell(groups=groups, label=label, rows=rows, expected=expected, weight=expected / rows))
    weight = {(cell.groups, cell.label): cell.weight for cell in cells}
    return cells, np.array([weight[cell] for cell in zip(of_row, of_label, strict=True)])


def _drawn(of_row: list[str], labels: np.ndarray, cells: list[Cell], names: list[str], seed: int) -> np.ndarray:
    """How often each row is taken (N,): so often that each cell has its expected rows, the rest drawn by the seed."""
    import numpy as np

    rng = np.random.default_rng(seed)
    copies = np.zeros(len(of_row), dtype=np.int64)
    groups = np.array(of_row)
    for cell in cells:
        members = np.flatnonzero((groups == cell.groups) & (labels == names.index(cell.label)))
        whole, rest = divmod(round(cell.expected), len(members))
        copies[members] = whole
        copies[rng.choice(members, size=rest, replace=False)] += 1
    return copies


if __name__ == "__main__":
    run_stage(run)
