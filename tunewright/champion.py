"""The section `champion` of params.yaml: when a new model may take the champion's place.

No stage reads it, so an edit here makes nothing run again: the flow acts on it after the last stage, and so do
`tunewright compare` and `promote`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tunewright.params import Section


class ChampionParams(Section):
    """How a model is held against the champion. That the metrics are the task's own, `load_params` sees to."""

    tolerances: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict,
        description="metric of the task → how much worse than the champion's it may be; the deciding one counts "
        "always, with 0 where it is not named",
    )
    min_rows: int = Field(default=100, ge=1, description="of test, that the champion has not learned from")
    confidence_level: float = Field(default=0.9, gt=0.5, lt=1, description="of the paired intervals")
    promote: bool = Field(default=True, description="the flow promotes what it blesses; else `tunewright promote`")
