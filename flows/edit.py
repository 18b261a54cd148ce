"""Edits of params.yaml that leave the rest of the file as it stands: its order, its comments, its blank lines.

A value is replaced at the very place where ruamel.yaml finds it. Why a value was chosen goes beside its key, behind a
mark of our own, so that a later edit can take it away again.

A place is a tuple of keys and positions, as ("ingest", "sources", 0, "text_column").
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode

MARK = "# init: "
COLUMN = 37  # where the comments of params.yaml begin, less the two spaces before them
WIDTH = 120

Place = tuple[str | int, ...]


def replaced(text: str, values: Mapping[Place, Any]) -> str:
    """The text with new values; a comment that stands on the line of a key stays there.

    Raises
        KeyError  for a place that the text does not have.
    """
    lines = text.splitlines()
    root = YAML(typ="safe", pure=True).compose(text)
    found = [(*_entry(root, place), value) for place, value in values.items()]
    for key, node, value in sorted(found, key=lambda entry: -entry[0].start_mark.line):
        first, last = key.start_mark.line, _end(node)[0]
        before = lines[first][: key.end_mark.column]
        scalar_end = _end(node)[1] if last == first else key.end_mark.column + 1
        comment = lines[first][scalar_end:].strip()
        head, *more = _dumped(value)
        line = f"{before}:{head}"
        if comment:
            line = f"{line.ljust(lines[first].index(comment, scalar_end) - 2)}  {comment}"
        indent = " " * key.start_mark.column
        lines[first : last + 1] = [line, *(indent + row for row in more)]
    return "\n".join(lines) + "\n"


def with_values(text: str, values: Mapping[Place, Any]) -> str:
    """The text with new values; a key that it lacks comes at the end of its section, a section at the end of the text.

    Raises
        KeyError  for a place inside something that is no section.
    """
    root = YAML(typ="safe", pure=True).compose(text)
    known = {place: value for place, value in values.items() if _stands(root, place)}
    text = replaced(text, known)
    for place, value in values.items():
        if place not in known:
            text = _with_key(text, place, value)
    return text


def _with_key(text: str, place: Place, value: Any) -> str:
    root = YAML(typ="safe", pure=True).compose(text)
    while place[:-1] and not _stands(root, place[:-1]):
        place, value = place[:-1], {place[-1]: value}
    _, section = _entry(root, place[:-1])
    if not isinstance(section, MappingNode):
        raise KeyError(".".join(map(str, place)))
    lines = text.splitlines()
    if section.flow_style:
        whole = dict(YAML(typ="safe", pure=True).load(text[section.start_mark.index : section.end_mark.index]))
        return replaced(text, {place[:-1]: {**whole, place[-1]: value}})
    head, *more = _dumped(value)
    after = _end(section)[0] + 1
    lines[after:after] = [" " * section.start_mark.column + row for row in (f"{place[-1]}:{head}", *more)]
    return "\n".join(lines) + "\n"


def _stands(root: Any, place: Place) -> bool:
    try:
        _entry(root, place)
    except KeyError:
        return False
    return True


def commented(text: str, reasons: Mapping[Place, str], mark: str = MARK) -> str:
    """The text with a reason for each place: on its line where there is room, else in lines of their own above it."""
    lines = text.splitlines()
    root = YAML(typ="safe", pure=True).compose(text)
    found = [(*_entry(root, place), reason) for place, reason in reasons.items()]
    for key, node, reason in sorted(found, key=lambda entry: -entry[0].start_mark.line):
        line, column = key.start_mark.line, key.start_mark.column
        end_line, end = _end(node)
        beside = f"{lines[line].ljust(COLUMN)}  {mark}{reason}"
        if key is not node and end_line == line and not lines[line][end:].strip() and len(beside) <= WIDTH:
            lines[line] = beside
            continue
        # An item, and its first key, stand behind a dash: what goes above goes above that.
        dash = lines[line][:column].rstrip()
        indent = " " * (len(dash) - 1 if dash.endswith("-") else column)
        wrapped = textwrap.wrap(reason, WIDTH - len(indent) - len(mark), break_long_words=False)
        lines[line:line] = [f"{indent}{mark}{row}" for row in wrapped]
    return "\n".join(lines) + "\n"


def without_marks(text: str) -> str:
    """The text without the reasons that an earlier edit gave."""
    kept = [line for line in text.splitlines() if not line.lstrip().startswith(MARK)]
    return "\n".join(re.sub(rf"\s+{re.escape(MARK)}.*$", "", line) for line in kept) + "\n"


def _entry(root: Any, place: Place) -> tuple[Any, Any]:
    """The node that marks a place (its key, or the item itself), and the node of its value."""
    mark = node = root
    for part in place:
        if isinstance(part, int):
            mark = node = node.value[part]
        else:
            entries = node.value if isinstance(node, MappingNode) else []
            mark, node = next(((key, value) for key, value in entries if key.value == part), (None, None))
            if node is None:
                raise KeyError(".".join(map(str, place)))
    return mark, node


def _end(node: Any) -> tuple[int, int]:
    """Line and column after the last character of a value: the end of a block is marked where the next one starts."""
    if isinstance(node.value, str) or node.flow_style:
        return node.end_mark.line, node.end_mark.column
    last = node.value[-1]
    return _end(last[1] if isinstance(last, tuple) else last)


def _dumped(value: Any) -> Sequence[str]:
    """A value as it stands behind a key's colon: the rest of the key's line, then the lines below it."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    yaml.allow_unicode = True
    yaml.width = 10_000
    yaml.indent(mapping=2, sequence=4, offset=2)
    stream = io.StringIO()
    yaml.dump({"x": value}, stream)
    head, *more = stream.getvalue().splitlines()
    return [head.removeprefix("x:"), *more]
