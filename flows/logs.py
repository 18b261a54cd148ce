"""What goes to logs and to the console, without secrets and personal values, whoever writes it."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import IO

from flows import console
from tunewright.masking import masked

# The loggers of Prefect that have handlers of their own: those that send to the server, and the console's.
_LOGGERS = ("", "prefect", "prefect.extra", "prefect.flow_runs", "prefect.task_runs")


class Mask(logging.Filter):
    """Rewrites each line of a log, its traceback too."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every line pass, masked."""
        record.msg, record.args = masked(record.getMessage()), None
        if record.exc_info:
            record.exc_text = masked("".join(traceback.format_exception(*record.exc_info)).rstrip())
            record.exc_info = None
        return True


def mask_all() -> None:
    """Mask all that this process logs from now on."""
    for name in _LOGGERS:
        for handler in logging.getLogger(name).handlers:
            if not any(isinstance(found, Mask) for found in handler.filters):
                handler.addFilter(Mask())


def keeper(log: IO[str], name: str) -> Callable[[str], None]:
    """What to do with each line that a process prints: keep it in `log`, and show it as `name`'s on the console."""

    def keep(line: str) -> None:
        line = masked(line)  # a library's own warning can quote a row, or a secret
        with suppress(OSError):  # a full disk: who does not read on would leave the process waiting
            log.write(f"{line}\n")
            log.flush()
        console.output(name, line)

    return keep
