"""HTML pages from the templates that stand beside the stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

FILTERS: Mapping[str, Callable[..., str]] = {
    "decimal": lambda value, digits=4: f"{value:.{digits}f}".replace("-", "−"),
    "level": lambda value: f"{100 * value:g}%",
}
"""Of every page."""


def render(template: Path, filters: Mapping[str, Callable[..., str]], **context: Any) -> str:
    """The page. What comes from the context is escaped, and a name that it does not hold is an error.

    filters: of this page, beside FILTERS.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {**FILTERS, **filters}
    return environment.get_template(template.name).render(context)
