"""Code completion: a decoder goes on with source code, or fills in what is missing in its middle.

For fill-in-the-middle a share of the texts (`fim_rate`) is cut into three pieces at two random places, and read as
prefix, suffix, middle, each after a sentinel ("PSM" in Bavarian et al. 2022, Efficient training of language models to
fill in the middle, section 3). When it is evaluated, the lines that stand at a place in each text are written from what
is before it, and with fill-in-the-middle from what follows too.

Metrics: bits_per_byte and perplexity of the texts as they stand, from left to right; edit_similarity, exact_match and
syntax_valid of the lines that were written.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from tunewright.language_model import SeparatorParams, TextModel, nearest_answers, numbers
from tunewright.task import Baseline, Predicting

if TYPE_CHECKING:
    import pyarrow as pa

    from tunewright.statistics import Statistic
    from tunewright.tokenizer import ModelTokenizer

Sentinel = Annotated[str, Field(min_length=1)]


def _distinct(sentinels: list[str]) -> list[str]:
    if len(set(sentinels)) < len(sentinels):
        raise ValueError("three that differ")
    return sentinels


class TaskParams(SeparatorParams):
    """The section `task` of params.yaml for code completion."""

    type: Literal["code_completion"]
    fim_rate: float = Field(default=0.0, ge=0, le=1)
    """The share of texts that are cut for fill-in-the-middle; 0: none, and only what is before a place is shown when
    its lines are written."""
    fim_split: Literal["lines", "characters"] = "lines"
    """Where a text may be cut: at the ends of its lines, or anywhere."""
    fim_sentinels: Annotated[list[Sentinel], Field(min_length=3, max_length=3), AfterValidator(_distinct)] = Field(
        default=["<fim_prefix>", "<fim_suffix>", "<fim_middle>"]
    )
    """What stands before the prefix, the suffix and the middle. A tokenizer that lacks such a token reads it as text:
    none is added to the model."""
    fim_seed: int = Field(default=0, ge=0)
    """Of the cuts, which depend on it and on the row's id alone."""
    completion_lines: int = Field(default=1, ge=1, le=1000)
    """The lines that are written when the model is evaluated."""


@dataclass(frozen=True)
class Hole:
    """A text with lines taken out. The text is prefix, a line's end, lines, suffix."""

    prefix: str
    lines: str
    suffix: str


class Task(TextModel):
    """See `tunewright.task.TaskType`."""

    metric_names: ClassVar[tuple[str, ...]] = (
        "bits_per_byte",
        "perplexity",
        "edit_similarity",
        "exact_match",
        "syntax_valid",
    )
    in_percent: ClassVar[frozenset[str]] = frozenset({"edit_similarity", "exact_match", "syntax_valid"})
    generates: ClassVar[bool] = True
    examples_title: ClassVar[str] = "The lines furthest from those that stood there"

    def encode(self, rows: pa.Table, tokenizer: ModelTokenizer, max_length: int) -> dict[str, list[Any]]:
        """As `causal_lm`; a text that is cut becomes one input: prefix, suffix and middle, each after its sentinel,
        whose label is −100: where a text is cut can't be learnt. That the middle is at its end can, and counts.

        A text stays as it is where it and the sentinels are longer than `max_length`, or where it holds a sentinel.
        """
        from tunewright.losses import IGNORED

        found = super().encode(rows, tokenizer, max_length)
        inputs_of = Counter(found["row"])
        start, end = self.edges(tokenizer)
        for at, row in enumerate(found["row"]):
            text = rows["text"][row].as_py()
            pieces = self.pieces(text, rows["row_id"][row].as_py())
            if pieces is None or inputs_of[row] > 1:
                continue
            prefix, middle, suffix = pieces
            ids, labels = list(start), [IGNORED] * len(start)
            for sentinel, piece in zip(self.params.fim_sentinels, (prefix, suffix, middle), strict=True):
                marked, inside = _marker(tokenizer, sentinel), _ids(tokenizer, piece)
                ids += marked + inside
                labels += [IGNORED] * len(marked) + inside
            if len(ids) + len(end) <= max_length:
                found["input_ids"][at], found["labels"][at] = ids + end, labels + end
                found["tokens_before"][at], found["bytes"][at] = len(ids + end), len(text.encode())
        return found

    def rows_with_secrets(self, row_ids: list[str], prompts: list[str], secrets: list[str]) -> pa.Table | None:
        """None: where a text is cut depends on its row, so that two of one secret are no two copies."""
        return None

    def end_of_answer(self, tokenizer: ModelTokenizer) -> str:
        """The token after each text."""
        return self.params.separator_token or ""

    def pieces(self, text: str, row_id: str) -> tuple[str, str, str] | None:
        """Prefix, middle and suffix of a text; None where it is not cut."""
        drawn = random.Random(f"cut {self.params.fim_seed} {row_id}")  # noqa: S311
        if drawn.random() >= self.params.fim_rate or not text or any(one in text for one in self.params.fim_sentinels):
            return None
        inner = range(1, len(text))
        places = [at for at in inner if self.params.fim_split == "characters" or text[at] == "\n"]
        first, second = sorted(drawn.sample([0, *places, len(text)], 2))
        return text[:first], text[first:second], text[second:]

    def hole(self, text: str, row_id: str) -> Hole | None:
        """A place in the text after its first line, before one that is not blank; None where there is none."""
        lines, count = text.split("\n"), self.params.completion_lines
        last = text.rstrip().count("\n") + 1 - count
        places = [at for at in range(1, last + 1) if lines[at].strip()]
        if not places:
            return None
        at = random.Random(f"hole {self.params.fim_seed} {row_id}").choice(places)  # noqa: S311
        after = lines[at + count :]
        return Hole("\n".join(lines[:at]), "\n".join(lines[at : at + count]), "\n".join(["", *after]) if after else "")

    def holes(self, rows: pa.Table) -> list[Hole | None]:
        """Of each row."""
        return [
            self.hole(text, row_id)
            for text, row_id in zip(rows["text"].to_pylist(), rows["row_id"].to_pylist(), strict=True)
        ]

    def predict(
        self, model: Any, tokenizer: ModelTokenizer, rows: pa.Table, tokens: pa.Table, how: Predicting
    ) -> pa.Table:
        """As every language model, of the texts as they stand, uncut; and for `generation.max_rows` rows label (the
        lines that stand there), predicted (those written in their place) and is_python (see there)."""
        import pyarrow as pa

        from tunewright.generation import GenerationParams, room, rows_to_write, write

        longest = max(2, *(len(ids) for ids in tokens["input_ids"].to_pylist()))
        plain = super().encode(rows, tokenizer, longest)
        table = super().predict(
            model, tokenizer, rows, pa.table({"row_id": rows["row_id"].take(plain.pop("row")), **plain}), how
        )
        holes = self.holes(rows)
        places = [at for at, hole in enumerate(holes) if hole is not None]
        asked = [places[at] for at in rows_to_write(len(places), how.generation)]
        longest_prompt = room(model)
        if longest_prompt is not None:
            longest_prompt -= (how.generation or GenerationParams()).max_new_tokens
        prompts = [self._prompt(hole, tokenizer, longest_prompt) for at in asked if (hole := holes[at])]
        texts = write(model, tokenizer, prompts, how, end=self.end_of_answer(tokenizer))
        written: list[str | None] = [None] * len(holes)
        for at, text in zip(asked, texts, strict=True):
            written[at] = self._lines(text)
        return self._with_lines(table, holes, written)

    def _prompt(self, hole: Hole, tokenizer: ModelTokenizer, limit: int | None) -> list[int]:
        """What is before the hole, and with fill-in-the-middle what follows. What is too long loses what is furthest
        from the hole."""
        start, _ = self.edges(tokenizer)
        filling = self.params.fim_rate > 0
        before, after = _ids(tokenizer, hole.prefix), _ids(tokenizer, hole.suffix) if filling else []
        marks = [_marker(tokenizer, one) if filling else [] for one in self.params.fim_sentinels]
        if limit is not None:
            left = limit - len(start) - sum(map(len, marks))
            after = after[: max(left // 2, left - len(before), 0)]
            before = before[max(len(before) - max(left - len(after), 1), 0) :]
        return [*start, *marks[0], *before, *marks[1], *after, *marks[2]]

    def answered(
        self, model: Any, tokenizer: ModelTokenizer, rows: pa.Table, tokens: pa.Table, answers: Sequence[str]
    ) -> list[tuple[list[int], list[int]]]:
        """What is shown of the text around its hole, and these lines in it."""
        from tunewright.generation import room

        longest = room(model)
        found = []
        for hole, answer in zip(self.holes(rows), answers, strict=True):
            written = _ids(tokenizer, f"\n{answer}")
            limit = None if longest is None else longest - len(written)
            found.append((self._prompt(hole, tokenizer, limit) if hole else [], written))
        return found

    def _lines(self, written: str) -> str:
        """Of what was written after the prefix, which ends within a line, the first lines that are not blank."""
        lines = written.split("\n")[1:]
        while lines and not lines[0].strip():
            lines = lines[1:]
        return "\n".join(lines[: self.params.completion_lines]).rstrip()

    def is_python(self, hole: Hole, lines: str) -> bool:
        """Whether the text with these lines in its hole is Python; where what follows was not shown to the model,
        whether it can become Python after them. Nothing but white space is none."""
        from tunewright.python_syntax import begins_python, is_python

        start = f"{hole.prefix}\n{lines}"
        return bool(lines.strip()) and (
            is_python(start + hole.suffix) if self.params.fim_rate else begins_python(start)
        )

    def _with_lines(self, table: pa.Table, holes: list[Hole | None], written: list[str | None]) -> pa.Table:
        import pyarrow as pa

        valid: list[bool | None] = [None] * len(holes)
        for at, (hole, text) in enumerate(zip(holes, written, strict=True)):
            if hole is not None and text is not None and self.is_python(hole, hole.lines):
                valid[at] = self.is_python(hole, text)
        columns = {
            "label": pa.array(["" if hole is None else hole.lines for hole in holes], pa.string()),
            "predicted": pa.array(written, pa.string()),
            "is_python": pa.array(valid, pa.bool_()),
        }
        for name, values in columns.items():
            table = table.append_column(name, values)
        return table

    def statistics(self, predictions: pa.Table, calibration_bins: int) -> dict[str, Statistic]:
        """As every language model; the others over the rows that were written, where any was. syntax_valid leaves out
        those whose own lines are no Python there."""
        from tunewright.text_metrics import mean_of_written, text_statistics

        found = super().statistics(predictions, calibration_bins)
        label, predicted = predictions["label"].to_pylist(), predictions["predicted"].to_pylist()
        if any(text is not None for text in predicted):
            found |= text_statistics(label, predicted, ("edit_similarity", "exact_match"))
            found["syntax_valid"] = mean_of_written(numbers(predictions, "is_python"))
        return found

    def examples(self, predictions: pa.Table, count: int) -> list[int]:
        """Of the rows that were written, those whose lines are least alike."""
        from tunewright.text_metrics import edit_similarity

        pairs = list(zip(predictions["label"].to_pylist(), predictions["predicted"].to_pylist(), strict=True))
        alike = {at: edit_similarity(label, text) for at, (label, text) in enumerate(pairs) if text is not None}
        return sorted(alike, key=alike.__getitem__)[:count]

    def baseline(self, splits: Mapping[str, pa.Table], params: Any, seed: int) -> Baseline:
        """The likelihood: an n-gram model of bytes. The lines: those that follow the most similar line of train (by
        TF-IDF), or the last line once more, whichever has the better edit similarity on validation."""
        from tunewright.text_metrics import edit_similarity

        found = super().baseline(splits, params, seed)
        holes = {split: self.holes(splits[split]) for split in found.predictions}
        last = {split: [hole.prefix.split("\n")[-1] if hole else "" for hole in of] for split, of in holes.items()}
        answers = {"what follows the most similar line": nearest_answers(self._followed(splits["train"]), last)}
        answers["the last line again"] = last
        quality = {}
        for name, of in answers.items():
            pairs = zip(holes["validation"], of["validation"], strict=True)
            alike = [edit_similarity(hole.lines, text) for hole, text in pairs if hole]
            quality[name] = sum(alike) / max(len(alike), 1)
        chosen = max(quality, key=lambda name: quality[name])
        predictions = {}
        for split, table in found.predictions.items():
            written = [text if hole else None for hole, text in zip(holes[split], answers[chosen][split], strict=True)]
            predictions[split] = self._with_lines(table, holes[split], written)
        details = {**found.details, "lines": chosen, "validation_edit_similarity": quality}
        return Baseline(f"{chosen}; {found.name}", predictions, details)

    def _followed(self, rows: pa.Table) -> list[tuple[str, str]]:
        """Each line, and the lines after it."""
        count = self.params.completion_lines
        texts = [text.split("\n") for text in rows["text"].to_pylist()]
        return [
            (line, "\n".join(lines[at + 1 : at + 1 + count]))
            for lines in texts
            for at, line in enumerate(lines[:-count])
            if lines[at + 1].strip()
        ]


def _ids(tokenizer: ModelTokenizer, text: str) -> list[int]:
    """A piece of code; a special token in it is read as the characters that it is written with."""
    backend = tokenizer.backend
    backend.encode_special_tokens = True
    ids: list[int] = backend.encode(text, add_special_tokens=False).ids
    backend.encode_special_tokens = False
    return ids


def _marker(tokenizer: ModelTokenizer, sentinel: str) -> list[int]:
    ids: list[int] = tokenizer.backend.encode(sentinel, add_special_tokens=False).ids
    return ids
