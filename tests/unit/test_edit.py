"""Edits of params.yaml: only what is meant changes, and a reason can be taken away again."""

from __future__ import annotations

import pytest
from ruamel.yaml import YAML

from flows.edit import commented, replaced, with_values, without_marks

TEXT = """\
# The head.
seed: 42          # a seed
task:
  labels:         # in order
    - a
    - b

# Of the sources.
ingest:
  sources:
    - name: x
      bins: {}    # none yet
  last: null
"""


def test_values_change_in_place_and_every_comment_stays() -> None:
    new = replaced(
        TEXT,
        {
            ("seed",): 7,
            ("task", "labels"): ["no", "1", "null", "über"],
            ("ingest", "sources", 0, "bins"): {"low": -0.5},
            ("ingest", "last"): [],
        },
    )
    assert new == (
        "# The head.\n"
        "seed: 7           # a seed\n"
        "task:\n"
        "  labels:         # in order\n"
        "    - no\n"
        "    - '1'\n"
        "    - 'null'\n"
        "    - über\n"
        "\n"
        "# Of the sources.\n"
        "ingest:\n"
        "  sources:\n"
        "    - name: x\n"
        "      bins:       # none yet\n"
        "        low: -0.5\n"
        "  last: []\n"
    )
    assert YAML(typ="safe", pure=True).load(new)["task"]["labels"] == ["no", "1", "null", "über"]


def test_a_whole_list_of_sections_is_replaced() -> None:
    new = replaced(TEXT, {("ingest", "sources"): [{"name": "y", "columns": ["p", "q"]}, {"name": "z"}]})
    assert new.endswith(
        "  sources:\n    - name: y\n      columns:\n        - p\n        - q\n    - name: z\n  last: null\n"
    )


def test_a_reason_goes_beside_its_key_or_above_it_and_can_be_taken_away() -> None:
    reasons = {
        ("seed",): "as it was",  # its line has a comment already
        ("ingest", "sources", 0): "one file",
        ("ingest", "sources", 0, "name"): "word " * 40,
        ("ingest", "last"): "short",
    }
    new = commented(TEXT, reasons)
    lines = new.splitlines()
    assert lines[1:3] == ["# init: as it was", "seed: 42          # a seed"]
    assert "  last: null                           # init: short" in lines
    assert [line for line in lines if line.startswith("    # init: ")][-1] == "    # init: one file"
    assert all(len(line) <= 120 for line in lines)
    yaml = YAML(typ="safe", pure=True)
    assert yaml.load(new) == yaml.load(TEXT)
    assert without_marks(new) == TEXT


def test_a_key_that_is_lacking_comes_at_the_end_of_its_section() -> None:
    new = with_values(
        TEXT,
        {
            ("seed",): 7,
            ("task", "type"): "x",
            ("ingest", "sources", 0, "bins", "low"): -0.5,
            ("ingest", "later"): [1],
            ("more", "a"): True,
            ("more", "b"): {"c": None},
        },
    )
    assert new == (
        "# The head.\n"
        "seed: 7           # a seed\n"
        "task:\n"
        "  labels:         # in order\n"
        "    - a\n"
        "    - b\n"
        "  type: x\n"
        "\n"
        "# Of the sources.\n"
        "ingest:\n"
        "  sources:\n"
        "    - name: x\n"
        "      bins:       # none yet\n"
        "        low: -0.5\n"
        "  last: null\n"
        "  later:\n"
        "    - 1\n"
        "more:\n"
        "  a: true\n"
        "  b:\n"
        "    c: null\n"
    )
    with pytest.raises(KeyError, match=r"seed\.x"):
        with_values(TEXT, {("seed", "x"): 1})


def test_a_place_that_is_not_there_is_named() -> None:
    with pytest.raises(KeyError, match=r"task\.nothing"):
        replaced(TEXT, {("task", "nothing"): 1})
