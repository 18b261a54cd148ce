"""Hold the ingested rows against the data contract, by Great Expectations.

Reads   paths.ingested     Parquet
Writes  paths.data_docs    Great Expectations' own page of the results, index.html
Report  paths.reports/validate.json

This stage measures: it ends well when expectations fail, and gate_data judges. Nothing that it writes holds a
value of a row: of each result only counts, fractions and column types are kept, and of an error only its kind.
"""

from __future__ import annotations

import difflib
import gc
import importlib.util
import itertools
import json
import logging
import re
import sys
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, Field, model_validator

from tunewright.errors import UserError
from tunewright.files import atomic_folder, open_parquet, read_parquet
from tunewright.params import Fraction, Section
from tunewright.report import Report, RowAccount
from tunewright.stage import Dep, Out, Paths, run_stage
from tunewright.task import TaskType

# Of a result: what can't hold a row's value.
COUNTS = {
    "element_count",
    "missing_count",
    "missing_percent",
    "unexpected_count",
    "unexpected_percent",
    "unexpected_percent_nonmissing",
    "unexpected_percent_total",
}
# Of these expectations the observed value is a count, a fraction, a type or the names of columns.
OBSERVED = re.compile(r"_columns_to_match_|_count_|_proportion_|_of_type$|_type_to_be$|_type_list$")
# Of the page: the ids of its elements, and the date that is sent along with the request for a logo.
CHANGING = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|\d{8}T\d{6}\.\d{6}Z")
# Kwargs by which an expectation looks beyond the columns that it names.
WHOLE = {"column_index", "condition_parser", "row_condition"}
# Great Expectations still has its file, and knows it no more.
DEPRECATED = {"expect_multicolumn_values_to_be_unique"}


@cache
def expectation_types() -> list[str]:
    """The names of Great Expectations' own expectations, from its source: to import it takes seconds."""
    spec = importlib.util.find_spec("great_expectations")
    if spec is None or spec.origin is None:
        raise UserError("the package great_expectations is not installed. Run `make run`, which installs it.")
    core = Path(spec.origin).parent / "expectations/core/__init__.py"
    names = set(re.findall(r"^from \.(expect_\w+) import", core.read_text(encoding="utf-8"), re.MULTILINE))
    return sorted(names - DEPRECATED)


def _known_type(name: str) -> str:
    known = expectation_types()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean `{near[0]}`?" if near else f", such as {known[0]}"
        raise ValueError(f"an expectation of Great Expectations{hint}")
    return name


class ExpectationParams(Section):
    """One further expectation, by its Great Expectations type and kwargs."""

    type: Annotated[str, AfterValidator(_known_type)]
    kwargs: dict[str, Any]


class ValidateParams(Section):
    """The section `validate` of params.yaml."""

    min_rows: int = Field(ge=1)
    max_rows: int = Field(ge=1)
    text_min_length: int = Field(ge=0, description="characters")
    text_max_length: int = Field(ge=1, description="characters")
    max_null_fraction: Fraction
    unique_columns: list[str]
    expectations: list[ExpectationParams]

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        if self.min_rows > self.max_rows:
            raise ValueError("min_rows at most as large as max_rows")
        if self.text_min_length > self.text_max_length:
            raise ValueError("text_min_length at most as large as text_max_length")
        return self


class ValidatePaths(Paths):
    """What validate reads and writes."""

    ingested: Dep
    data_docs: Out


class ExpectationReport(BaseModel):
    """One expectation: `found` in counts, fractions and types, `expected` as params set it."""

    name: str
    success: bool
    found: str
    expected: str


class ValidateReport(Report):
    """All expectations, those made from the section first, then the user's own."""

    success: bool
    expectations: list[ExpectationReport]


def run(paths: ValidatePaths, params: ValidateParams, task: TaskType) -> ValidateReport:
    """Make the suite, measure it, write the page."""
    # Its log would repeat rows' values where an expectation can't be computed.
    logging.getLogger("great_expectations").setLevel(logging.CRITICAL)
    gc.disable()  # the import makes thousands of classes and no garbage: an eighth of its seconds
    import great_expectations as gx

    gc.enable()
    from great_expectations.execution_engine import pandas_execution_engine

    # Twice it takes a fingerprint of the rows, for a store that is not kept: of a million, most of the time.
    pandas_execution_engine.HASH_THRESHOLD = 0
    expectations = _expectations(params, task)
    with open_parquet(paths.ingested) as file:
        columns, rows = file.schema_arrow.names, file.metadata.num_rows
    frame = read_parquet(paths.ingested, _looked_at(params, task, columns)).to_pandas()
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    asset = context.data_sources.add_pandas("ingested").add_dataframe_asset("rows")
    batch = asset.add_batch_definition_whole_dataframe("whole").get_batch({"dataframe": frame})
    suite = gx.ExpectationSuite(name="contract")
    suite.expectations = expectations
    # The results come back in an order of Great Expectations' own: each carries its place in the suite.
    for place, expectation in enumerate(suite.expectations):
        expectation.meta = {"place": place}
    result = batch.validate(suite, result_format={"result_format": "BASIC", "partial_unexpected_count": 0})
    result.results.sort(key=lambda found: found.expectation_config.meta.pop("place"))
    for found in result.results:
        _strip(found, columns)
    with atomic_folder(paths.data_docs) as folder:
        (folder / "index.html").write_text(_page(result), encoding="utf-8")
    reported = [_reported(found) for found in result.results]
    return ValidateReport(
        rows=RowAccount(rows_in=rows, rows_kept=rows),
        success=all(expectation.success for expectation in reported),
        expectations=reported,
    )


def _looked_at(params: ValidateParams, task: TaskType, columns: list[str]) -> list[str]:
    """The columns to read: those that an expectation names, or all where one may look at any."""
    named = [*task.columns, *params.unique_columns]
    for kwargs in (expectation.kwargs for expectation in params.expectations):
        own = [kwargs[key] for key in ("column", "column_A", "column_B") if key in kwargs]
        own += kwargs.get("column_list", [])
        if not own or WHOLE & kwargs.keys():
            return columns
        named += own
    return [name for name in columns if name in named]


def _expectations(params: ValidateParams, task: TaskType) -> list[Any]:
    """The suite: the contract of the section, then the user's own expectations.

    Raises
        UserError  listing every unknown or wrong kwarg of the user's expectations.
    """
    kept = 1.0 - params.max_null_fraction
    wanted: list[tuple[str, dict[str, Any]]] = [
        ("expect_table_row_count_to_be_between", {"min_value": params.min_rows, "max_value": params.max_rows}),
    ]
    # Great Expectations can't look into a list: of several labels a row, ingest holds each against task.labels.
    types = dict.fromkeys(task.columns, "str")
    if task.label_kind != "one":
        types |= {"label": "float64" if task.label_kind == "number" else "list"}
    for column in task.columns:
        wanted.append(("expect_column_to_exist", {"column": column}))
        if types[column] != "list":
            wanted.append(("expect_column_values_to_be_of_type", {"column": column, "type_": types[column]}))
        wanted.append(("expect_column_values_to_not_be_null", {"column": column, "mostly": kept}))
    lengths = {"min_value": params.text_min_length, "max_value": params.text_max_length}
    texts = [column for column in task.columns if column != "label"]
    wanted += [("expect_column_value_lengths_to_be_between", {"column": column, **lengths}) for column in texts]
    if task.label_kind == "one":
        wanted.append(("expect_column_values_to_be_in_set", {"column": "label", "value_set": task.label_names}))
    elif task.label_kind == "number":
        finite = {"min_value": -sys.float_info.max, "max_value": sys.float_info.max}
        wanted.append(("expect_column_values_to_be_between", {"column": "label", **finite}))
    wanted += [("expect_column_values_to_be_unique", {"column": column}) for column in params.unique_columns]
    own = len(wanted)
    wanted += [(expectation.type, expectation.kwargs) for expectation in params.expectations]

    from great_expectations.expectations.registry import get_expectation_impl
    from pydantic.v1 import ValidationError

    made, faults = [], []
    for place, (name, kwargs) in enumerate(wanted, start=-own):
        kind = get_expectation_impl(name)
        try:
            made.append(kind(**kwargs))
        except ValidationError as error:
            # Several faults of one kwarg are the members of one union: the first says enough.
            first = {str(fault["loc"][0]): fault for fault in reversed(error.errors())}
            faults += [
                f"  validate.expectations[{place}] {name}: {_kwarg_fault(kwarg, fault, kind, kwargs)}"
                for kwarg, fault in first.items()
            ]
    if faults:
        raise UserError("kwargs that Great Expectations refuses:\n" + "\n".join(faults))
    return made


def _kwarg_fault(kwarg: str, fault: dict[str, Any], kind: Any, kwargs: dict[str, Any]) -> str:
    allowed = [*kind.domain_keys, *kind.success_keys]
    known = sorted(name for name in kind.__fields__ if name in allowed)
    if fault["type"] == "value_error.extra":
        near = difflib.get_close_matches(kwarg, known, n=1)
        return f"unknown kwarg `{kwarg}`. " + (f"Did you mean `{near[0]}`?" if near else f"Known: {', '.join(known)}.")
    if fault["type"] == "value_error.missing":
        return f"kwarg `{kwarg}` is missing. Known: {', '.join(known)}."
    return f"kwarg `{kwarg}`: found {kwargs.get(kwarg)!r}; {fault['msg']}."


def _strip(found: Any, columns: list[str]) -> None:
    """Keep of one result what can't hold a row's value, and say in our words why it could not be computed."""
    config = found.expectation_config
    observed = found.result.get("observed_value") if OBSERVED.search(config.type) else None
    found.result = {key: value for key, value in found.result.items() if key in COUNTS}
    if "unexpected_percent" not in found.result:
        found.result.pop("unexpected_count", None)
    if observed is not None:
        found.result["observed_value"] = observed
    raised = "raised_exception" not in found.exception_info or found.exception_info["raised_exception"]
    message = ""
    if raised:
        named = [config.kwargs.get(key) for key in ("column", "column_A", "column_B")]
        named += config.kwargs.get("column_list", [])
        absent = [repr(name) for name in named if name is not None and name not in columns]
        message = f"no column {', '.join(absent)}" if absent else "the column's type or the kwargs do not allow it"
    found.exception_info = {"raised_exception": raised, "exception_message": message, "exception_traceback": ""}


def _reported(found: Any) -> ExpectationReport:
    config = found.expectation_config
    kwargs = {key: value for key, value in config.kwargs.items() if key not in ("batch_id", "column")}
    column = f" of {config.kwargs['column']}" if "column" in config.kwargs else ""
    expected = ", ".join(f"{key} {json.dumps(value, default=str)}" for key, value in sorted(kwargs.items()))
    return ExpectationReport(
        name=config.type + column,
        success=bool(found.success),
        found=_found(found),
        expected=expected or ("no row unexpected" if "element_count" in found.result else "met"),
    )


def _found(found: Any) -> str:
    result = found.result
    if found.exception_info["raised_exception"]:
        return f"could not be computed: {found.exception_info['exception_message']}"
    if "observed_value" in result:
        return str(result["observed_value"])
    if "unexpected_count" in result and result.get("element_count"):
        unexpected, rows = result["unexpected_count"], result["element_count"]
        missing = f", {result['missing_count']} null" if result.get("missing_count") else ""
        return f"{unexpected} of {rows} rows unexpected ({unexpected / rows:.4f}){missing}"
    return "met" if found.success else "not met"


def _page(result: Any) -> str:
    """Great Expectations' page of the results, as a page that stands alone and is the same in every run."""
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
    from great_expectations.render.view import DefaultJinjaPageView

    result.meta = {"great_expectations_version": result.meta["great_expectations_version"]}
    page = DefaultJinjaPageView().render(ValidationResultsPageRenderer().render(result))
    page = re.sub(r'href="(\.\./)+[^"]*\.html"', 'href="index.html"', page)
    numbers = itertools.count(1)
    ids: dict[str, str] = {}
    return CHANGING.sub(lambda match: ids.setdefault(match[0], f"n{next(numbers)}"), page)


if __name__ == "__main__":
    run_stage(run)
