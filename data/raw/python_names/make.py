"""Makes names.jsonl from the standard library of the Python that runs it: `python make.py` beside this file.

Each row is one statement of a module, cut into its tokens, and for each token what it names there: a function, a
method, an attribute, a parameter, a variable, a module, a class, or O for none of them (operators, keywords, literals).
The tokens are those of Python's own tokenizer, the names come from Python's own parser, so they are right by
construction; a reader of the tokens alone has to guess them from the context.

The file in git was made of CPython 3.11. Statements of five to forty tokens, each once, without strings that hold
white space; every module has at most as many as the limit below.
"""

from __future__ import annotations

import ast
import io
import json
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TOKENS = range(5, 41)
STATEMENTS_OF_A_MODULE = 40
MODULES = 150
SIMPLE = (
    ast.Assign,
    ast.AnnAssign,
    ast.AugAssign,
    ast.Return,
    ast.Expr,
    ast.Raise,
    ast.Assert,
    ast.Import,
    ast.ImportFrom,
)
SKIPPED = {tokenize.ENCODING, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def kinds_of(statement: ast.AST) -> dict[tuple[int, int], str]:
    """What each name of a statement is, by the line and the column where it stands."""
    kinds: dict[tuple[int, int], str] = {}
    for node in ast.walk(statement):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                kinds[start(node.func)] = "class" if node.func.id[:1].isupper() else "function"
            elif isinstance(node.func, ast.Attribute):
                kinds[last_name(node.func)] = "method"
        # A call stands above the name that it calls, and says more than that.
        elif isinstance(node, ast.Attribute):
            kinds.setdefault(last_name(node), "attribute")
        elif isinstance(node, ast.Name):
            kinds.setdefault(start(node), "variable")
        elif isinstance(node, ast.arg) or (isinstance(node, ast.keyword) and node.arg):
            kinds[start(node)] = "parameter"
    return kinds


def start(node: Any) -> tuple[int, int]:
    """Where a node begins."""
    return node.lineno, node.col_offset


def last_name(node: ast.Attribute) -> tuple[int, int]:
    """Where the name behind the last dot begins."""
    return node.end_lineno or 0, (node.end_col_offset or 0) - len(node.attr)


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The statements of one module."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    taken = 0
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, SIMPLE) or taken == STATEMENTS_OF_A_MODULE:
            continue
        source = ast.get_source_segment(text, node) or ""
        if not source.isascii() or not lines[node.lineno - 1].isascii():
            continue
        kinds = kinds_of(node)
        tokens, tags = [], []
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type in SKIPPED or token.type == tokenize.COMMENT:
                continue
            line = node.lineno + token.start[0] - 1
            column = token.start[1] + (node.col_offset if token.start[0] == 1 else 0)
            kind = kinds.get((line, column), "O") if token.type == tokenize.NAME else "O"
            if isinstance(node, (ast.Import, ast.ImportFrom)) and token.type == tokenize.NAME:
                kind = "O" if token.string in ("import", "from", "as") else "module"
            tokens.append(token.string)
            tags.append(kind)
        if len(tokens) in TOKENS and not any(" " in token or "\n" in token for token in tokens):
            taken += 1
            yield {"module": path.stem, "tokens": tokens, "tags": tags}


def main() -> None:
    """Write the file."""
    library = Path(sysconfig.get_paths()["stdlib"])
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for path in sorted(library.glob("*.py"))[:MODULES]:
        for row in rows_of(path):
            rows.setdefault(tuple(row["tokens"]), row)
    written = "".join(json.dumps(row) + "\n" for row in rows.values())
    Path(__file__).with_name("names.jsonl").write_text(written, encoding="utf-8")


if __name__ == "__main__":
    main()
