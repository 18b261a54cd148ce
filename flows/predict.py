"""The exported model asked for single texts: JSON, a line a text, in their order.

    tunewright predict "A joy from start to finish."
    tunewright predict --file texts.txt
    some-command | tunewright predict

and in Python:

    from flows.predict import load

    model = load("models/export")
    model.predict(["A joy from start to finish."])

A text is read and cleaned as a row of `tunewright score` is, and the model answers as it does there.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows.new_rows import NewRows, is_unicode, source_of
from flows.scorer import Scorer
from flows.scoring import check_model
from flows.which_model import chosen
from tunewright.errors import UserError
from tunewright.params import Params
from tunewright.stage import QUIET, SPIN
from tunewright.task import load_task

BYTES_AT_ONCE = 1 << 16
PROBABILITY, LOGIT = "probability_", "logit_"


class Predictor:
    """The exported model in `folder`, loaded once.

    Raises
        UserError  for a model that is not whole or not of the task of params.
    """

    def __init__(self, folder: Path, params: Params) -> None:
        for name, value in (QUIET | SPIN).items():
            os.environ.setdefault(name, value)
        self._params = params
        self._task = load_task(params.task)
        check_model(folder, self._task, params)
        self._scorer = Scorer(folder, self._task, params)

    def predict(self, texts: list[str]) -> list[dict[str, Any]]:
        """One answer a text, in their order: `text` as it was given, and what the model says of it: `predicted`, of a
        classifier `probabilities` by label too, and `abstained` where it may abstain: `predicted` is None then. A text
        that can't be used has `error` in their place.

        Raises
            UserError  for a text that is none: half of a surrogate pair, which bytes that are not UTF-8 become.
        """
        for at, text in enumerate(texts, start=1):
            if not is_unicode(text):
                raise UserError(f"text {at}: holds what is not Unicode (half of a surrogate pair). Give it as UTF-8.")
        if not texts:
            return []
        rejected: list[dict[str, Any]] = []
        found: dict[int, dict[str, Any]] = {}
        with tempfile.TemporaryDirectory() as scratch:
            data = Path(scratch) / "texts.jsonl"
            data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
            source = source_of(data, self._params, format_="jsonl", text_column="text")
            rows = NewRows(data, source, self._params, self._task, rejected)
            chunk = list(rows)
            for table in self._scorer.score(chunk, rows) if chunk else ():
                found |= {row["line"]: self._answer(row) for row in table.to_pylist()}
        found |= {row["line"]: {"error": f"{row['reason']}: {row['detail']}"} for row in rejected}
        return [{"text": text, **found[line]} for line, text in enumerate(texts, start=1)]

    def _answer(self, row: dict[str, Any]) -> dict[str, Any]:
        answer = {
            name: value
            for name, value in row.items()
            if name not in ("id", "line") and not name.startswith((PROBABILITY, LOGIT))
        }
        names = self._task.label_names
        if names and PROBABILITY + names[0] in row:
            answer["probabilities"] = {name: row[PROBABILITY + name] for name in names}
        return answer


def load(model: str | Path | None = None, revision: str | None = None) -> Predictor:
    """The model that `tunewright predict` would ask, in the project's folder.

    model: a folder with an exported model.   revision: a branch, a tag, a commit or `champion`.   Neither: the
    champion's where there is one, else that of `paths.export`.

    Raises
        UserError  see `flows.which_model.chosen` and `Predictor`.
    """
    with chosen(None if model is None else Path(model), revision) as by:
        if by.bring is not None:
            by.bring()
        return Predictor(by.folder, by.params)


def lines_of(stream: int, name: str) -> Iterator[list[str]]:
    """The lines of an open file as they come, some at once.

    stream: a file descriptor, read to its end.   name: for messages.

    Raises
        UserError  for a line that is not UTF-8.
    """
    rest, number = b"", 0
    while piece := os.read(stream, BYTES_AT_ONCE):
        *whole, rest = (rest + piece).split(b"\n")
        yield _decoded(whole, name, number)
        number += len(whole)
    if rest:
        yield _decoded([rest], name, number)


def _decoded(lines: list[bytes], name: str, before: int) -> list[str]:
    found = []
    for at, line in enumerate(lines, start=before + 1):
        try:
            found.append(line.removesuffix(b"\r").decode("utf-8-sig" if at == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            raise UserError(f"{name}: line {at}: byte {error.start} is not UTF-8. Save the texts as UTF-8.") from error
    return found
