"""Batch scoring as a flow: new rows in, Parquet out. `tunewright score` does the same without Prefect.

    prefect deployment run score/score --param data=new.csv --param output=scores.parquet

Idempotent: the same rows, model and settings are scored once, however often a schedule fires.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows import clones
from flows.scoring import Scored, Wish
from flows.states import FAILED_STATES
from flows.which_model import score_with, told
from tunewright.errors import UserError
from tunewright.stage import end_with_parent


@flow(name="score", persist_result=False)
def score(
    data: str,
    output: str,
    model: str | None = None,
    revision: str | None = None,
    source: str | None = None,
    format: str | None = None,  # noqa: A002
    text_column: str | None = None,
    id_column: str | None = None,
) -> State[None]:
    """Score the rows of a file into a Parquet file.

    data, output, model: paths; of a deployed run, beginning at the project's folder and not at the run's own clone.
    revision: a branch, a tag, a commit or `champion`, whose exported model and params are taken.
    source: of ingest.sources, by which the file is read.
    """
    end_with_parent()
    clone = clones.here()
    home = Path(clone.home) if clone else Path()
    wish = Wish(home / data, home / output, home / model if model else None, source, format, text_column, id_column)
    try:
        scored, by = score_with(wish, revision)
    except UserError as error:
        return Failed(name=FAILED_STATES[error.outcome], message=str(error))
    scored = replace(scored, output=Path(output))
    _show(scored, by)
    clones.remove_own()
    return Completed(name="Unchanged" if scored.unchanged else "Completed", message="; ".join(told(scored, by)))


def _show(scored: Scored, by: str) -> None:
    """What Prefect's page shows: counts, reasons and hashes; no value of a row."""
    made_of = [f"- {name}: `{value}`" for name, value in scored.made_of.items() if name != "versions"]
    lines = [f"- {line}" for line in told(scored, by)]
    create_markdown_artifact("\n".join([*lines, *made_of]), key="score-summary", description="What was scored by what")
    if scored.rejected:
        rows = [{"reason": reason, "rows": count} for reason, count in sorted(scored.rejected.items())]
        create_table_artifact(table=rows, key="score-rejected", description="Rows that could not be scored")
