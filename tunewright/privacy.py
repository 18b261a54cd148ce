"""Personal data and secrets in texts: found by patterns that are checked, redacted by typed placeholders.

`Guard` is what a stage calls for each row; `scan` and `redact` are the same without policies; `mask` is for whatever
quotes data in a message, a log or a page. What is found is told by kind, count and row id, never by its value.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, Field

from tunewright.gates import Finding
from tunewright.params import Section

KINDS = ("secret", "credit_card", "iban", "us_ssn", "email", "phone", "ip_address")
"""What is known without a user's own patterns."""

Policy = Literal["off", "warn", "redact", "fail"]


class PatternParams(Section):
    """A user's own kind: what it looks like, and what happens to it."""

    regex: str = Field(min_length=1)
    policy: Policy


class PrivacyParams(Section):
    """What happens to each kind: off, warn, redact or fail. The section `prepare.privacy`."""

    email: Policy
    phone: Policy
    phone_regions: list[str] = Field(description="ISO codes; their national forms are phones too")
    credit_card: Policy
    iban: Policy
    ip_address: Policy
    us_ssn: Policy
    secret: Policy
    patterns: dict[str, PatternParams]


@dataclass(frozen=True, order=True)
class Span:
    """One value in a text: `text[start:end]`, and its kind (one of KINDS, or the name of a user's own pattern)."""

    start: int
    end: int
    kind: str


class KindReport(BaseModel):
    """One kind: its policy, how often it was found, and in which rows."""

    policy: Policy
    values: int
    rows: int
    row_ids: list[str]
    """The first SHOWN of them."""


class PrivacyReport(BaseModel):
    """What a Guard has found, for a stage's report: every kind that is not off."""

    kinds: dict[str, KindReport]

    def findings(self) -> list[Finding]:
        """One finding a kind, for the data gate: warn warns, fail fails, what was redacted passes."""
        raise NotImplementedError


class Guard:
    """Holds the policies of params against one row after another, and keeps count.

    Call it before duplicates are looked for and before the split, so that two texts which differ only in what is
    redacted count as the same. A key to group by is taken from the row before.
    """

    def __init__(self, params: PrivacyParams) -> None:
        raise NotImplementedError

    def text(self, row_id: str, text: str) -> str:
        """The text of a row of one column: what is to be redacted, redacted; all found counted under `row_id`."""
        raise NotImplementedError

    def row(self, row_id: str, values: Mapping[str, str | None]) -> dict[str, str | None]:
        """The same for several columns of one row: the same value gets the same placeholder in all of them."""
        raise NotImplementedError

    def report(self) -> PrivacyReport:
        """What was found so far."""
        raise NotImplementedError


def scan(text: str, kinds: Collection[str] = KINDS) -> list[Span]:
    """Every value of these kinds, in the order of the text, without overlaps."""
    raise NotImplementedError


def redact(text: str, spans: Iterable[Span] | None = None) -> str:
    """The text with each span (of `scan`, where none are given) as a placeholder: `[EMAIL_1]`, the same for the same
    value."""
    raise NotImplementedError


def mask(text: str, params: PrivacyParams | None = None) -> str:
    """The text without any value of any kind, whatever the policies; with `params`, of the user's own patterns too."""
    raise NotImplementedError
