"""A conversation as one string, so that every stage of the data works on plain text.

    <|user|>
    Is the moon larger than the sun?
    <|assistant|>
    No. It is nearer.

A marker names the role of what follows it, up to the next marker. It counts wherever it stands, whatever white space
is around it, so a content can hold none; white space at either end of a content is no part of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

ROLES = ("system", "user", "assistant")

MARKER = re.compile(rf"<\|({'|'.join(ROLES)})\|>")


def render(messages: Sequence[Mapping[str, str]]) -> str:
    """Messages, each with `role` and `content`, as one string: `parse` gives them back, stripped.

    Raises
        ValueError  for no message at all, a role that is none of ROLES, and a content that holds a role's marker.
    """
    if not messages:
        raise ValueError("no message")
    for message in messages:
        if message["role"] not in ROLES:
            raise ValueError(f"the role {message['role']!r}, expected one of {', '.join(ROLES)}")
        if MARKER.search(message["content"]):
            raise ValueError(f"a content that holds the marker of a role ({MARKER.pattern})")
    return "\n".join(f"<|{message['role']}|>\n{message['content'].strip()}" for message in messages)


def parse(text: str) -> list[dict[str, str]]:
    """The messages of a rendered conversation, each with `role` and `content`, stripped.

    Raises
        ValueError  where the text does not begin with a role's marker.
    """
    before, *parts = MARKER.split(text)
    if before.strip() or not parts:
        raise ValueError("a conversation that does not begin with the marker of a role, such as <|user|>")
    return [{"role": role, "content": content.strip()} for role, content in zip(parts[::2], parts[1::2], strict=True)]
