"""The exported classifier, or its form of eight bits, over ONNX Runtime alone: no PyTorch, so it starts in a second and
answers quickly."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.new_rows import Cleaner
from flows.scoring import MANIFEST, check_model
from tunewright.batches import sorted_batches
from tunewright.classification import tokenized
from tunewright.control import probabilities_of, read_control
from tunewright.errors import UserError
from tunewright.onnx_files import session
from tunewright.params import Params
from tunewright.proofs import VERIFIED
from tunewright.sources import CONTROL
from tunewright.stage import QUIET, SPIN
from tunewright.task import load_task
from tunewright.tokenizer import open_tokenizer

if TYPE_CHECKING:
    import numpy as np

MODEL = "model.onnx"
KINDS = ("one", "set")
"""The kinds of label that are answered here: one label a text, or several."""
BATCH_SIZE = 32
MAX_WORDS = 256
"""That are coloured: of a longer text the first ones."""


@dataclass(frozen=True)
class Answer:
    """What the model says of a text, or why it says nothing."""

    predicted: str | list[str] | None = None
    """The label, or the labels; None where the model abstains."""
    probabilities: dict[str, float] | None = None
    abstained: bool = False
    error: str | None = None


def manifest_of(folder: Path) -> str:
    """The name of the file that lists a folder's files: of a converted form it says what was proven, too."""
    return VERIFIED if not (folder / MANIFEST).is_file() and (folder / VERIFIED).is_file() else MANIFEST


class OnnxModel:
    """The model of an exported folder, or of a converted form, with its tokenizer, its labels and its control.

    Raises
        UserError  for a model that is not whole, not of the task of params, or without model.onnx.
    """

    def __init__(self, folder: Path, params: Params) -> None:
        for name, value in (QUIET | SPIN).items():
            os.environ.setdefault(name, value)
        task = load_task(params.task)
        if task.label_kind not in KINDS:
            raise UserError(
                f"task.type: found {params.task.type}; what answers over HTTP is a classifier of texts. "
                "`tunewright predict` and `tunewright score` answer for any task."
            )
        check_model(folder, task, params, manifest_of(folder))
        if not (folder / MODEL).is_file():
            raise UserError(f"{folder / MODEL}: not found. Set export.onnx: true, then `tunewright run`.")

        try:
            self._session = session(folder / MODEL, params.num_threads)
        except Exception as error:  # ONNX Runtime's own errors derive from nothing narrower
            raise UserError(
                f"{folder / MODEL}: can't be opened ({error}). Bring the model back: `dvc checkout`."
            ) from error
        self._cleaner = Cleaner(params, task)
        self._tokenizer = open_tokenizer(folder)
        self._max_length = params.value("tokenize.max_length")
        self._control = read_control(folder)
        self._task = task
        self.labels = task.label_names
        self.max_text_characters: int = params.value("ingest.max_text_characters")
        self._strips = params.value("ingest.control_characters") == "strip"

    def answers(self, texts: list[str]) -> list[Answer]:
        """One answer a text, in their order. Probabilities are those after the temperature of `control.json`."""
        found = [self._refused(text) for text in texts]
        usable = [(at, text) for at, (text, fault) in enumerate(found) if fault is None]
        answers = [Answer(error=fault) for _, fault in found]
        if usable:
            tempered = self.logits([text for _, text in usable]).astype("float64") / self._control.temperature
            for (at, _), row in zip(usable, probabilities_of(tempered, self._task), strict=True):
                answers[at] = self._answer(row)
        return answers

    def attributions(self, text: str) -> tuple[str, list[tuple[str, float]]]:
        """The label that the model is surest of, and how much each word speaks for it: its logit with the word less
        that without it (occlusion; Zeiler and Fergus, Visualizing and understanding convolutional networks, 2014).

        Words stand between spaces; of a text with more than MAX_WORDS the first ones are looked at, and no word of one
        that can't be used.
        """
        cleaned, fault = self._refused(text)
        if fault is not None:
            return "", []
        words = cleaned.split()[:MAX_WORDS]
        without = [" ".join(words[:at] + words[at + 1 :]) for at in range(len(words))]
        logits = self.logits([" ".join(words), *without])
        label = int(logits[0].argmax())
        return self.labels[label], [
            (word, float(logits[0, label] - logits[at + 1, label])) for at, word in enumerate(words)
        ]

    def logits(self, texts: list[str]) -> np.ndarray:
        """Cleaned texts → logits (N, L), computed in batches of like length."""
        import numpy as np

        ids, _ = tokenized(texts, self._tokenizer.backend, self._max_length)
        found = np.zeros((len(texts), len(self.labels)), np.float32)
        for members in sorted_batches([len(row) for row in ids], BATCH_SIZE):
            longest = max(len(ids[at]) for at in members)
            tokens = np.full((len(members), longest), self._tokenizer.pad_token_id, np.int64)
            mask = np.zeros_like(tokens)
            for row, at in enumerate(members):
                tokens[row, : len(ids[at])] = ids[at]
                mask[row, : len(ids[at])] = 1
            found[members] = self._session.run(["logits"], {"input_ids": tokens, "attention_mask": mask})[0]
        return found

    def _refused(self, text: str) -> tuple[str, str | None]:
        if len(text) > self.max_text_characters:
            return "", f"the text has {len(text)} characters, expected at most {self.max_text_characters}"
        if self._strips:
            text = CONTROL.sub("", text)
        elif found := CONTROL.search(text):
            told = f"text holds the control character U+{ord(found[0]):04X} at its character {found.start() + 1}"
            return "", f"control_characters: {told}"
        cleaned, fault = self._cleaner.clean("", text)
        return cleaned, None if fault is None else ": ".join(fault)

    def _answer(self, row: np.ndarray) -> Answer:
        probabilities = {label: float(value) for label, value in zip(self.labels, row, strict=True)}
        below = self._control.abstain_below
        abstained = below is not None and float(row.max()) < below
        predicted: Any = self.labels[int(row.argmax())]
        if self._task.label_kind != "one":
            predicted = [label for label, value in probabilities.items() if value > 0.5]
        return Answer(None if abstained else predicted, probabilities, abstained)
