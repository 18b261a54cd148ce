"""What is shown of a run: lines of logs, messages, tables, without personal data and without secrets.

`privacy.mask` knows personal data and secrets by their form. A secret of the environment is known by the name of its
variable, whatever it looks like. No output of a stage is masked so: it would depend on the environment.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tunewright.privacy import PrivacyParams, mask, scan

SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|KEY|AUTH_STRING")
# Names a file, or sets how tokenizers work.
NO_SECRET_NAME = re.compile(r"^TOKENIZERS_|_(FILE|PATH|DIR|FOLDER)$")
SHORTEST = 6
"""A shorter value is no secret worth the name, and would be found in every second line."""
LONG = 12
"""From here on a setting that holds the value of a secret variable is no coincidence."""
# Only what could be a token is looked at with all patterns: to load them costs a stage a tenth of its start.
_PART = re.compile(r"[A-Za-z0-9+=]{10,}")
_NO_TOKEN = re.compile(r"[^0-9]+|[0-9a-f]{40}|[0-9a-f]{64}")
_ADDRESS = re.compile(r"://[^/\s]*@")


def secrets(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Each secret of the environment → the name of its variable, the longest first; of several lines each one."""
    found: dict[str, str] = {}
    for name, value in (os.environ if environment is None else environment).items():
        if SECRET_NAME.search(name.upper()) and not NO_SECRET_NAME.search(name.upper()):
            found |= {line.strip(): name for line in value.splitlines() if len(line.strip()) >= SHORTEST}
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))


def masked(text: str, params: PrivacyParams | None = None) -> str:
    """The text as it may be shown: `[NAME]` for the value of a secret variable, `[EMAIL_1]` and the like for what
    `privacy.mask` takes out; with `params`, of the user's own patterns too."""
    for secret, name in secrets().items():
        text = text.replace(secret, f"[{name}]")
    return mask(text, params)


def masked_all(value: Any) -> Any:
    """The same for every text in nested lists and dicts."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, dict):
        return {key: masked_all(inner) for key, inner in value.items()}
    return [masked_all(inner) for inner in value] if isinstance(value, list) else value


def secret_settings(value: Any) -> Iterator[tuple[int | str, ...]]:
    """Where in nested sections and lists a secret stands: one by its form, or the value of a secret variable."""
    known = [secret for secret in secrets() if len(secret) >= LONG]

    def walk(value: Any, above: tuple[int | str, ...]) -> Iterator[tuple[int | str, ...]]:
        if isinstance(value, dict | list):
            for part, inner in value.items() if isinstance(value, dict) else enumerate(value):
                yield from walk(inner, (*above, part))
        elif isinstance(value, str) and (any(secret in value for secret in known) or _has_the_form(value)):
            yield above

    return walk(value, ())


def _has_the_form(text: str) -> bool:
    tokens = [part for part in _PART.findall(text) if not _NO_TOKEN.fullmatch(part)]
    worth = tokens or "PRIVATE KEY" in text or _ADDRESS.search(text)
    return bool(worth) and bool(scan(text, ("secret",)))
