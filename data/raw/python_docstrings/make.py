"""Makes the file beside this one from the standard library of the Python that runs it: `python make.py`.

    docstrings.jsonl  name, module, body (a docstring without its first line), summary (its first line)

The one in git was made of Python 3.11.7. Of every module, class and function whose docstring is a line, an empty line
and more text (PEP 257); tests are left out, and rows that share their body or their summary with another, or whose
body repeats the summary.
"""

from __future__ import annotations

import ast
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

SUMMARY, BODY = (15, 120), (60, 1200)  # characters
LEFT_OUT = {"__pycache__", "site-packages", "test", "tests", "idle_test", "pydoc_data"}


def docstrings(library: Path) -> Iterator[dict[str, str]]:
    """The docstrings of a folder of modules, sorted by name."""
    for file in sorted(library.rglob("*.py")):
        path = file.relative_to(library)
        if LEFT_OUT & set(path.parts):
            continue
        module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        yield from of_node(ast.parse(file.read_bytes()), module, module)


def of_node(node: ast.AST, name: str, module: str) -> Iterator[dict[str, str]]:
    """The docstring of a module, class or function, then those inside it."""
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        summary, _, rest = (ast.get_docstring(node) or "").partition("\n")
        body = rest.strip()
        if rest.startswith("\n") and fits(summary, SUMMARY) and fits(body, BODY) and summary not in body:
            yield {"name": name, "module": module, "body": body, "summary": summary}
    for child in ast.iter_child_nodes(node):
        yield from of_node(child, f"{name}.{child.name}" if hasattr(child, "name") else name, module)


def fits(text: str, limits: tuple[int, int]) -> bool:
    """Whether a text is of a length, and of words."""
    return limits[0] <= len(text) <= limits[1] and len(text.split()) > 2 and text.isprintable() | ("\n" in text)


def main() -> None:
    """Write the file."""
    bodies: set[str] = set()
    summaries: set[str] = set()
    lines = []
    for row in docstrings(Path(sysconfig.get_paths()["stdlib"])):
        if row["body"] not in bodies and row["summary"] not in summaries:
            lines.append(json.dumps(row, ensure_ascii=False))
        bodies.add(row["body"])
        summaries.add(row["summary"])
    Path(__file__).with_name("docstrings.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
