"""What a stage reports: one strict, finite, canonical JSON file under `reports/`, named as the stage.

A report holds what was found, never when or where: the same inputs give the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tunewright.files import write_json


class RowAccount(BaseModel):
    """Where a stage's rows went. `rows_in = rows_kept + Σ dropped[reason]` holds, or the report can't be made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows_in: int = Field(ge=0)
    rows_kept: int = Field(ge=0)
    dropped: dict[str, int] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.rows_in != self.rows_kept + sum(self.dropped.values()):
            raise ValueError(f"rows do not add up: {self.rows_in} in, {self.rows_kept} kept, dropped {self.dropped}")
        return self


class Report(BaseModel):
    """The base of every stage's report. A stage that does not apply to a job reports `applies: false`."""

    # Built late: most are never used by a process.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    applies: bool = True
    rows: RowAccount | None = None

    def write(self, path: Path) -> None:
        """Write the report as canonical JSON, atomically."""
        write_json(path, self.model_dump(mode="json"))
