"""Makes functions.jsonl and translation.jsonl from the standard library of the Python that runs it: `python make.py`.

functions.jsonl: functions and methods of the library as they stand there, comments and docstrings included, moved to
the left margin. Three to thirty lines and at most 700 characters, each once, at even steps over a module's.

translation.jsonl: real Python functions (`python`), at most 420 characters long, beside the JavaScript that
javascript.py prints of each (`javascript`). Nobody wrote that JavaScript: it is made from the Python, so that the
target is real and the pair says the same, as far as a print can. Only functions of the subset that javascript.py
states, without comments, docstrings and annotations, which it can't carry over.

The files in git were made of CPython 3.11; tests and tools that are programs of their own are left out.
"""

from __future__ import annotations

import ast
import io
import json
import sysconfig
import textwrap
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from javascript import Unsupported, printed

LINES = range(3, 31)
CHARACTERS = 700
FUNCTIONS_OF_A_MODULE = 12
TRANSLATED_CHARACTERS = 420
TRANSLATED_OF_A_MODULE = 30
LEFT_OUT = {
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "turtledemo",
    "ensurepip",
    "site-packages",
    "encodings",
    "pydoc_data",
}


def functions(path: Path, module: str) -> Iterator[dict[str, Any]]:
    """The functions of a module and the methods of its classes, in their order."""
    text = path.read_text(encoding="utf-8")
    if not text.isascii():
        return
    lines = text.splitlines(keepends=True)
    pending: list[tuple[ast.AST, str]] = [(node, "") for node in ast.parse(text).body]
    while pending:
        node, above = pending.pop(0)
        if isinstance(node, ast.ClassDef):
            pending = [(inner, f"{above}{node.name}.") for inner in node.body] + pending
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            code = textwrap.dedent("".join(lines[first - 1 : node.end_lineno]).expandtabs()).rstrip() + "\n"
            if parses(code):
                yield {"module": module, "name": above + node.name, "code": code}


def parses(code: str) -> bool:
    """Whether it still is Python when it stands alone: a line inside a string may stand left of the function."""
    try:
        ast.parse(code)
    except SyntaxError:
        return False
    return True


def has_comment(code: str) -> bool:
    """Whether anything in it is no part of its syntax tree."""
    return any(token.type == tokenize.COMMENT for token in tokenize.generate_tokens(io.StringIO(code).readline))


def translation(row: dict[str, Any]) -> dict[str, Any] | None:
    """The row with its JavaScript; None where it is outside the subset, or more than one would read at a glance."""
    code = row["code"]
    if len(code) > TRANSLATED_CHARACTERS or has_comment(code):
        return None
    try:
        return {"module": row["module"], "name": row["name"], "javascript": printed(code), "python": code}
    except Unsupported:
        return None


def spread(rows: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most so many rows, at even steps."""
    count = min(len(rows), most)
    return [rows[at * len(rows) // count] for at in range(count)]


def write(name: str, rows: list[dict[str, Any]]) -> None:
    """One JSON a line."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    Path(__file__).with_name(name).write_text(text, encoding="utf-8")


def main() -> None:
    """Write both files."""
    library = Path(sysconfig.get_paths()["stdlib"])
    seen: set[str] = set()
    whole, translated = [], []
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).with_suffix("").parts
        if LEFT_OUT & set(parts) or any(part.startswith(("config-", "_sysconfigdata")) for part in parts):
            continue
        found = []
        for row in functions(path, ".".join(parts).removesuffix(".__init__")):
            if row["code"] not in seen:
                seen.add(row["code"])
                found.append(row)
        short = [row for row in found if len(row["code"]) <= CHARACTERS and row["code"].count("\n") in LINES]
        whole += spread(short, FUNCTIONS_OF_A_MODULE)
        translated += spread([pair for row in found if (pair := translation(row))], TRANSLATED_OF_A_MODULE)
    write("functions.jsonl", whole)
    write("translation.jsonl", translated)


if __name__ == "__main__":
    main()
