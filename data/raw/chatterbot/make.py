"""Makes conversations.jsonl beside this file of the English YAML files of the package chatterbot-corpus 1.3.3:

    pip download --no-deps chatterbot-corpus==1.3.3 && unzip chatterbot_corpus-*.whl
    python make.py chatterbot_corpus/data/english

One record a conversation: topic, question (what it begins with; several conversations can share one), messages. The
user and the assistant speak in turn, but in two topics, where a list is a question and several answers to it: there
each answer is a conversation of its own. Entries that are no list of texts are left out, and repeated conversations.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from ruamel.yaml import YAML

SEVERAL_ANSWERS = ("computers", "emotion")


def conversations(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Topic and turns of each conversation, file by file."""
    for path in sorted(folder.glob("*.yml")):
        for turns in YAML(typ="safe").load(path)["conversations"]:
            if not isinstance(turns, list) or not all(isinstance(turn, str) and turn.strip() for turn in turns):
                continue
            turns = [turn.strip() for turn in turns]
            if path.stem in SEVERAL_ANSWERS:
                yield from ((path.stem, [turns[0], answer]) for answer in turns[1:])
            elif len(turns) > 1:
                yield path.stem, turns


def main() -> None:
    """Write the file."""
    lines = []
    found = dict.fromkeys((topic, tuple(turns)) for topic, turns in conversations(Path(sys.argv[1])))
    for number, (topic, turns) in enumerate(found):
        messages = [{"role": ("user", "assistant")[at % 2], "content": turn} for at, turn in enumerate(turns)]
        record = {"id": f"{topic}-{number}", "topic": topic, "question": turns[0], "messages": messages}
        lines.append(json.dumps(record, ensure_ascii=False))
    Path(__file__).with_name("conversations.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
