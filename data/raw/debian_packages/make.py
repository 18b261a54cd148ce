"""Makes the two files beside this one from the package lists of a Debian machine: `python make.py`.

    sections.jsonl  package, summary (its one-line description), section: one topic each
    purposes.jsonl  package, summary, purposes: the debtags that say what it is for, one or several each

Those in git were made of Debian 12 (bookworm), main, amd64. Libraries, documentation and translations are left out,
and packages that share their description with another one.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

SECTIONS = (
    "admin", "database", "editors", "games", "graphics", "mail", "math", "net", "science", "sound", "text", "video",
    "web",
)  # fmt: skip
PURPOSES = (
    "use::checking", "use::configuring", "use::converting", "use::editing", "use::gameplaying", "use::monitor",
    "use::playing", "use::viewing", "works-with::audio", "works-with::file", "works-with::image", "works-with::mail",
    "works-with::text",
)  # fmt: skip
NOT_FOR_USERS = re.compile(
    r"^(role::(shared-lib|devel-lib|plugin|dummy|metapackage|documentation|data|app-data)|.*::TODO)$"
)


def packages() -> Iterator[dict[str, Any]]:
    """The packages of the lists, as they come."""
    listed = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True).stdout
    for entry in listed.split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z0-9-]+): ?(.*(?:\n .*)*)", entry, flags=re.MULTILINE))
        tags = [tag for tag in re.split(r",\s*", fields.get("Tag", "").strip()) if tag]
        summary = fields.get("Description", fields.get("Description-en", "")).split("\n")[0].strip()
        if fields.get("Section") in SECTIONS and summary and not any(map(NOT_FOR_USERS.match, tags)):
            yield {
                "package": fields["Package"],
                "section": fields["Section"],
                "summary": summary,
                "purposes": [tag for tag in PURPOSES if tag in tags],
            }


def write(name: str, rows: Iterable[dict[str, Any]], *columns: str) -> None:
    """One line a row, of some columns."""
    lines = [json.dumps({column: row[column] for column in columns}, ensure_ascii=False) for row in rows]
    Path(__file__).with_name(name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Write both files, sorted by name."""
    by_summary: dict[str, dict[str, Any]] = {}
    for found in sorted(packages(), key=lambda found: found["package"]):
        by_summary.setdefault(found["summary"], found)
    rows = by_summary.values()
    write("sections.jsonl", rows, "package", "summary", "section")
    write("purposes.jsonl", [row for row in rows if row["purposes"]], "package", "summary", "purposes")


if __name__ == "__main__":
    main()
