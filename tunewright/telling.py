"""One page made of facts: figures and words of reports as Markdown, with a footnote to each report."""

from __future__ import annotations

from collections.abc import Callable

from tunewright.facts import Facts, Plain
from tunewright.markdown import escape, paragraphs


def number(value: Plain) -> str:
    """A figure as the pages show it: thousands apart, four decimals, or three digits where those would be zeros."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4f}" if value == 0 or abs(value) >= 0.001 else f"{value:.3g}"
    return value


class Telling:
    """Takes facts for one page, and remembers which reports it has named.

    masked: takes personal values and secrets out of what comes from data.
    """

    def __init__(self, facts: Facts, masked: Callable[[str], str]) -> None:
        self.facts = facts
        self._masked = masked
        self._noted: list[str] = []

    def figure(self, stage: str, *keys: str | int) -> str:
        """A number as text; a dash where there is none."""
        value = self.facts.take(stage, *keys)
        return "–" if value is None else number(value)

    def words(self, stage: str, *keys: str | int) -> str:
        """A text of a report, masked and escaped; a dash where there is none."""
        value = self.facts.take(stage, *keys)
        return "–" if value is None else self.name(str(value))

    def code(self, stage: str, *keys: str | int) -> str:
        """A hash, as code; a dash where there is none."""
        value = self.facts.take(stage, *keys)
        return "–" if value is None else f"`{value}`"

    def estimate(self, stage: str, *keys: str | int) -> str:
        """`0.8712 (0.8533 to 0.8883)`; a dash where there is none."""
        value, low, high = (self.figure(stage, *keys, end) for end in ("value", "low", "high"))
        return value if low == "–" else f"{value} ({low} to {high})"

    def name(self, text: str) -> str:
        """A label, a group, a column: what stands in a report as a key."""
        return escape(self._masked(text))

    def asked(self, text: str | None) -> str:
        """What the user wrote in params; empty where that is nothing."""
        return "" if text is None else paragraphs(text)

    def note(self, *stages: str) -> str:
        """The marks of footnotes to reports."""
        self._noted += [stage for stage in stages if stage not in self._noted]
        return "".join(f"[^{stage}]" for stage in stages)

    def footnotes(self) -> str:
        """Each report that was noted: its file and SHA-256."""
        sources = self.facts.sources()
        listed = [(stage, *sources[stage]) for stage in self._noted if stage in sources]
        return "\n".join(f"[^{stage}]: `{file}`, SHA-256 `{sha256}`" for stage, file, sha256 in listed)
