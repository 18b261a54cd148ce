"""Why the tuned model says what it says: words that count, a test of that by deletion, the errors explained.

Reads   paths.tuned_model    the model that is asked
        paths.tokens         the inputs of test, and those of train for the nearest neighbours
        paths.prepared       their rows
        paths.predictions    which errors are explained, and the answers that a writing model gave
Writes  paths.explain_page   HTML with its style inside: the words of each row in colour; no script, nothing fetched
        paths.explain_plots  deletion.csv, for `dvc plots`; without a row where nothing was explained
Report  paths.reports/explain.json

A model that labels rows is asked for the logit of the label that it gives, one that writes for the log-probability of
the answer that it wrote. Other jobs (plain language models, labels of words) have no one answer to be explained. How it
is computed stands in tunewright/attribution.py. No personal value and no secret is shown, whatever the policies of
`prepare.privacy`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field

from tunewright.files import atomic_folder, read_parquet, write_text
from tunewright.gates import Finding
from tunewright.pages import render
from tunewright.params import Section
from tunewright.report import Report, RowAccount
from tunewright.stage import Dep, Key, Out, Paths, run_stage
from tunewright.statistics import Estimate
from tunewright.task import TaskType

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from tunewright.attribution import Asked, Attribution, Explainer, Shown, Unit
    from tunewright.tokenizer import ModelTokenizer

Kind = Literal["label", "answer"]

RANDOM_ORDERS = 3
"""Orders at random that the deletion of the words that count is compared with, in each row."""
MIN_ROWS = 30
"""Of fewer rows the deletion test says too little to be judged."""
MAX_DELTA = 0.1
"""Of the mean difference from the baseline: with a larger mean delta, the attributions are too rough to be read."""
MAX_CHARACTERS = 300
"""Of a neighbour's text or an answer; a longer one is cut, and says so."""
DIGITS = 4
MEASURES: dict[Shown, str] = {
    "softmax": "probability of the predicted label",
    "sigmoid": "probability of the likeliest label",
    "output": "minus the change of the predicted number",
    "likelihood": "probability of a token of the answer, geometric mean",
}


def _increasing(fractions: list[float]) -> list[float]:
    if sorted(set(fractions)) != fractions:
        raise ValueError("fractions in increasing order")
    return fractions


class ExplainParams(Section):
    """How much is explained, and how closely."""

    enabled: bool = Field(description="false: nothing is explained")
    max_rows: int = Field(ge=1, le=10_000, description="rows of test behind the deletion test and the top words, drawn")
    max_examples: int = Field(ge=0, le=1000, description="errors, and rows as drawn, that are shown word by word")
    n_steps: int = Field(ge=2, le=1000, description="points of the integral behind each attribution")
    deletion_fractions: Annotated[
        list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1), AfterValidator(_increasing)
    ] = Field(description="of a row's words that are taken out")
    min_word_rows: int = Field(ge=1, description="a word that stands in fewer rows is no top word")
    max_top_words: int = Field(ge=0, le=1000, description="of each label")
    max_train_rows: int = Field(
        ge=0, le=1_000_000, description="rows of train, drawn, among which neighbours are sought; 0: no neighbours"
    )
    max_neighbours: int = Field(ge=1, le=100, description="of each error")


class ExplainPaths(Paths):
    tuned_model: Dep
    tokens: Dep
    prepared: Dep
    predictions: Dep
    explain_page: Out
    explain_plots: Out


class Word(BaseModel):
    """A word as it is shown, and what it adds to the value; a special token adds nothing."""

    text: str
    attribution: float


class Neighbour(BaseModel):
    """A row of train, and the cosine of its vector and the explained row's."""

    row_id: str
    label: str
    cosine: float
    text: str


class Example(BaseModel):
    """One explained row of test."""

    row_id: str
    label: str
    predicted: str
    explained: str
    """What the attributions are of."""
    value: float
    """The logit, the number as the network gives it, or the log-probability of the answer in nats."""
    baseline: float
    """The same of the baseline: the words' attributions sum to value − baseline, up to `delta`."""
    delta: float
    words: list[Word]
    neighbours: list[Neighbour]
    """The nearest first."""


class TopWord(BaseModel):
    """A word with a high mean attribution over the rows of one predicted label that it stands in."""

    word: str
    rows: int
    attribution: float


class Convergence(BaseModel):
    """|Σ attributions − (F(x) − F(baseline))| over the attributed rows, and the mean |F(x) − F(baseline)| beside it."""

    mean: float
    max: float
    mean_difference: float


class Deletion(BaseModel):
    """What is left of the answer without ever more words: first those that count most, and in random orders."""

    measure: str
    rows: int
    fractions: list[float]
    """From 0."""
    top: list[float]
    random: list[float]
    area: Estimate
    """How far the random curve lies above the other on average, with its bootstrap interval over rows."""


class ExplainReport(Report):
    """What was explained of the model."""

    reason: str
    """What is explained; or why nothing is."""
    method: str
    n_steps: int
    convergence: Convergence | None
    deletion: Deletion | None
    top_words: dict[str, list[TopWord]]
    errors: list[Example]
    """Those that `TaskType.examples` picks out, of a model that labels rows."""
    examples: list[Example]
    """The first of the drawn rows."""
    findings: list[Finding]


@dataclass(frozen=True)
class _Row:
    """A row of test that is explained."""

    row_id: str
    source: str | None
    label: str
    predicted: str
    explained: str
    asked: Asked


def run(
    paths: ExplainPaths,
    params: ExplainParams,
    task: TaskType,
    seed: Annotated[int, Key("seed")],
    num_threads: Annotated[int, Key("num_threads")],
    samples: Annotated[int, Key("evaluate.bootstrap_samples")],
    confidence_level: Annotated[float, Key("evaluate.confidence_level")],
    privacy: Annotated[Any, Key("prepare.privacy")],
) -> ExplainReport:
    """Attribute, delete, look for neighbours, and write the page."""
    kind, reason = _kind(params, task)
    if kind is None:
        return _nothing(paths, reason)
    predictions = _of_test(paths.predictions)
    chosen = _drawn(_explainable(predictions, kind), params.max_rows, seed)
    if not chosen:
        return _nothing(paths, "there is no row of test with an answer to be explained")
    from tunewright.attribution import Explainer
    from tunewright.compute import open_tuned, set_up
    from tunewright.tokenizer import open_tokenizer

    set_up(num_threads, seed)
    tokenizer = open_tokenizer(paths.tuned_model)
    explainer = Explainer(open_tuned(task, paths.tuned_model), tokenizer.pad_token_id, answers=kind == "answer")
    errors = task.examples(predictions, params.max_examples) if kind == "label" else []
    places = list(dict.fromkeys([*chosen, *errors]))
    rows = dict(zip(places, _rows(paths, task, explainer, tokenizer, predictions, places, kind), strict=True))
    work = _Work(explainer, tokenizer, params, task, seed, privacy)
    explained = dict(zip(places, work.explain(list(rows.values())), strict=True))

    sample = [explained[at] for at in chosen]
    shown = _shown(task, kind)
    deletion = work.deletion(sample, shown, samples, confidence_level)
    convergence = _convergence([one.attribution for one in sample])
    near = _Neighbours(paths, work, predictions).of([explained[at] for at in errors]) if errors else []
    report = ExplainReport(
        rows=RowAccount(
            rows_in=predictions.num_rows,
            rows_kept=len(chosen),
            dropped={"not_drawn": predictions.num_rows - len(chosen)},
        ),
        reason=reason,
        method="integrated gradients of the token embeddings",
        n_steps=params.n_steps,
        convergence=convergence,
        deletion=deletion,
        top_words=work.top_words(sample) if kind == "label" and shown != "output" else {},
        errors=[_example(explained[at], found) for at, found in zip(errors, near, strict=True)],
        examples=[_example(one, []) for one in sample[: params.max_examples]],
        findings=[_exact(convergence), _faithful(deletion)],
    )
    _write(paths, report)
    return report


def _kind(params: ExplainParams, task: TaskType) -> tuple[Kind | None, str]:
    """What the task's answers are, and in words what is explained of them; or why nothing is."""
    if not params.enabled:
        return None, "explain.enabled is false"
    if task.generates:
        return "answer", "the log-probability of the answer that the model wrote, by the words of its prompt"
    if task.label_kind == "number":
        return "label", "the number that the model gives, by the words of the text"
    if task.label_kind in ("one", "set"):
        return "label", "the logit of the likeliest label, by the words of the text"
    return None, "a job of this type gives no one answer a row: its model labels words, or goes on with plain texts"


def _shown(task: TaskType, kind: Kind) -> Shown:
    if kind == "answer":
        return "likelihood"
    by_kind: dict[str, Shown] = {"one": "softmax", "set": "sigmoid", "number": "output"}
    return by_kind[task.label_kind]


def _nothing(paths: ExplainPaths, reason: str) -> ExplainReport:
    report = ExplainReport(
        applies=False,
        reason=reason,
        method="",
        n_steps=0,
        convergence=None,
        deletion=None,
        top_words={},
        errors=[],
        examples=[],
        findings=[],
    )
    _write(paths, report)
    return report


def _of_test(path: Path) -> pa.Table:
    import pyarrow.compute as pc

    predictions = read_parquet(path)
    # By a mask: an expression would import pandas, half a second.
    return predictions.filter(pc.equal(predictions["split"], "test"))


def _explainable(predictions: pa.Table, kind: Kind) -> list[int]:
    """The places of the rows that have an answer: not all are written, and one may be empty."""
    if kind == "label":
        return list(range(predictions.num_rows))
    return [at for at, text in enumerate(predictions["predicted"].to_pylist()) if text and text.strip()]


def _drawn(places: Sequence[int], count: int, seed: int) -> list[int]:
    """At most `count` of the places, drawn with a seed, in the order drawn."""
    import numpy as np

    order = np.random.default_rng(seed).permutation(len(places))[:count]
    return [places[at] for at in order]


def _rows(
    paths: ExplainPaths,
    task: TaskType,
    explainer: Explainer,
    tokenizer: ModelTokenizer,
    predictions: pa.Table,
    places: Sequence[int],
    kind: Kind,
) -> list[_Row]:
    """The rows at these places, with their tokens and what is asked of each."""
    import pyarrow as pa

    from tunewright.attribution import Asked
    from tunewright.compute import read_tokens

    rows = read_parquet(paths.prepared / "test.parquet").take(places)
    tokens = read_tokens(paths.tokens / "test.arrow")
    first = {row_id: at for at, row_id in reversed(list(enumerate(tokens["row_id"].to_pylist())))}
    ids, texts = rows["row_id"].to_pylist(), rows["text"].to_pylist()
    tokens = tokens.take(pa.array([first[row_id] for row_id in ids], pa.int64()))
    found = predictions.take(places)
    labels, predicted = ([_words(value) for value in found[name].to_pylist()] for name in ("label", "predicted"))
    if kind == "answer":
        pairs = task.answered(explainer.model, tokenizer, rows, tokens, predicted)
        return [
            _Row(row_id, None, label, answer, "the answer", Asked(prompt, answer=tuple(written)))
            for row_id, label, answer, (prompt, written) in zip(ids, labels, predicted, pairs, strict=True)
        ]
    inputs = tokens["input_ids"].to_pylist()
    targets = explainer.logits(inputs).argmax(axis=1).tolist()
    names = task.label_names or ["the number"]
    return [
        _Row(row_id, text, label, answer, names[target], Asked(of_row, label=target))
        for row_id, text, label, answer, of_row, target in zip(
            ids, texts, labels, predicted, inputs, targets, strict=True
        )
    ]


def _words(value: Any) -> str:
    """A label, several of them, or a number, as it is shown."""
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return "" if value is None else value if isinstance(value, str) else f"{value:.4g}"


@dataclass(frozen=True)
class _Explained:
    row: _Row
    units: list[Unit]
    attribution: Attribution
    scores: np.ndarray
    """Of each unit."""
    masked: Callable[[str], str]


@dataclass(frozen=True)
class _Work:
    """What the steps share."""

    explainer: Explainer
    tokenizer: ModelTokenizer
    params: ExplainParams
    task: TaskType
    seed: int
    privacy: Any

    def masked(self, text: str) -> str:
        from tunewright.privacy import mask

        return mask(text, self.privacy)

    def explain(self, rows: Sequence[_Row]) -> list[_Explained]:
        from tunewright import attribution
        from tunewright.privacy import placeholders

        units = []
        for row in rows:
            text, found, places = attribution.units(row.asked.input_ids, row.source, self.tokenizer)
            units.append(attribution.hidden(found, places, placeholders(text, self.privacy)))
        kept = [_special(found, len(row.asked.input_ids)) for row, found in zip(rows, units, strict=True)]
        values = self.explainer.attribute([row.asked for row in rows], kept, self.params.n_steps)
        return [
            _Explained(row, found, value, attribution.summed(value.tokens, found), self.masked)
            for row, found, value in zip(rows, units, values, strict=True)
        ]

    def deletion(self, sample: Sequence[_Explained], shown: Shown, samples: int, confidence_level: float) -> Deletion:
        """Both curves, and the area between them with its interval."""
        import numpy as np

        from tunewright.attribution import Asked, area_between, deletions
        from tunewright.statistics import bootstrap, mean

        fractions = self.params.deletion_fractions
        every: list[Asked] = []
        for number, one in enumerate(sample):
            # A number can be moved to either side.
            scores = np.abs(one.scores) if shown == "output" else one.scores
            of_row = deletions(one.row.asked, one.units, scores, fractions, RANDOM_ORDERS, self.seed + number)
            every += [asked for order in of_row for asked in order]
        distinct = list(dict.fromkeys((tuple(one.input_ids), one.label, one.answer) for one in every))
        measured = self.explainer.measure([Asked(list(ids), label, answer) for ids, label, answer in distinct], shown)
        of = dict(zip(distinct, measured, strict=True))
        values = np.array([of[tuple(one.input_ids), one.label, one.answer] for one in every])
        values = values.reshape(len(sample), 1 + RANDOM_ORDERS, 1 + len(fractions))
        if shown == "output":
            values = -np.abs(values - values[:, :, :1]) * getattr(self.task.params, "label_scale", 1.0)
        top, random = values[:, 0], values[:, 1:].mean(axis=1)
        area = mean(area_between(fractions, top, random))
        estimate = bootstrap({"area": area}, len(sample), samples, confidence_level, self.seed)["area"]
        return Deletion(
            measure=MEASURES[shown],
            rows=len(sample),
            fractions=[0.0, *fractions],
            top=[round(float(value), 6) for value in top.mean(axis=0)],
            random=[round(float(value), 6) for value in random.mean(axis=0)],
            area=estimate,
        )

    def top_words(self, sample: Sequence[_Explained]) -> dict[str, list[TopWord]]:
        from tunewright.attribution import top_words

        found = top_words(
            [(one.row.explained, one.units, one.scores) for one in sample],
            self.params.min_word_rows,
            self.params.max_top_words,
        )
        return {
            label: [TopWord(word=word, rows=rows, attribution=round(value, DIGITS)) for word, rows, value in words]
            for label in self.task.label_names
            for words in [found.get(label, [])]
        }


def _special(units: Iterable[Unit], length: int) -> list[bool]:
    kept = [False] * length
    for unit in units:
        for at in unit.tokens:
            kept[at] = unit.special
    return kept


@dataclass(frozen=True)
class _Neighbours:
    """The rows of train that the model holds for the most alike."""

    paths: ExplainPaths
    work: _Work
    predictions: pa.Table

    def of(self, explained: Sequence[_Explained]) -> list[list[Neighbour]]:
        """Those of each row, by the cosine of the mean of the last hidden states."""
        import pyarrow as pa

        from tunewright.attribution import neighbours
        from tunewright.compute import read_tokens

        params = self.work.params
        tokens = read_tokens(self.paths.tokens / "train.arrow")
        drawn = sorted(_drawn(range(tokens.num_rows), params.max_train_rows, self.work.seed))
        if not drawn:
            return [[] for _ in explained]
        tokens = tokens.select(["row_id", "input_ids"]).take(pa.array(drawn, pa.int64()))
        rows = read_parquet(self.paths.prepared / "train.parquet", columns=["row_id", "text", "label"])
        place = {row_id: at for at, row_id in enumerate(rows["row_id"].to_pylist())}
        known = self.work.explainer.vectors(tokens["input_ids"].to_pylist())
        asked = self.work.explainer.vectors([one.row.asked.input_ids for one in explained])
        found = []
        for nearest in neighbours(asked, known, params.max_neighbours):
            of_row = []
            for at, cosine in nearest:
                row_id = tokens["row_id"][at].as_py()
                text, label = (rows[name][place[row_id]].as_py() for name in ("text", "label"))
                of_row.append(
                    Neighbour(
                        row_id=self.work.masked(row_id),
                        label=_words(label),
                        cosine=round(cosine, DIGITS),
                        text=_cut(self.work.masked(text)),
                    )
                )
            found.append(of_row)
        return found


def _example(one: _Explained, near: list[Neighbour]) -> Example:
    row, values = one.row, one.attribution
    return Example(
        row_id=one.masked(row.row_id),
        label=_cut(one.masked(row.label)),
        predicted=_cut(one.masked(row.predicted)),
        explained=row.explained,
        value=round(values.value, DIGITS),
        baseline=round(values.baseline, DIGITS),
        delta=round(values.delta, 6),
        words=[
            Word(text=unit.text, attribution=round(float(score), DIGITS))
            for unit, score in zip(one.units, one.scores, strict=True)
        ],
        neighbours=near,
    )


def _cut(text: str) -> str:
    """Of a masked text what is shown: half a value would no longer be known as one, so it is masked first."""
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}… ({len(text):,} characters)"


def _convergence(found: Sequence[Attribution]) -> Convergence:
    deltas = [one.delta for one in found]
    return Convergence(
        mean=round(sum(deltas) / len(deltas), 6),
        max=round(max(deltas), 6),
        mean_difference=round(sum(abs(one.value - one.baseline) for one in found) / len(found), 6),
    )


def _exact(found: Convergence) -> Finding:
    """Whether the attributions are exact enough to be read."""
    limit = MAX_DELTA * found.mean_difference
    return Finding(
        rule="explain: convergence",
        verdict="pass" if found.mean <= limit else "warn",
        found=f"delta {found.mean:.4f} in the mean, {found.max:.4f} at most",
        expected=f"a mean of at most {limit:.4f}, {MAX_DELTA:g} of the mean difference; more explain.n_steps lower it",
    )


def _faithful(deletion: Deletion) -> Finding:
    """Whether the attributions are faithful: never a reason to close the gate, but one to read them with care."""
    area, rows = deletion.area, f"{deletion.rows} row{'' if deletion.rows == 1 else 's'}"
    verdict: Literal["pass", "warn", "insufficient"] = "pass" if area.low > 0 else "warn"
    return Finding(
        rule="explain: deletion",
        verdict="insufficient" if deletion.rows < MIN_ROWS else verdict,
        found=f"area {area.value:.4f} [{area.low:.4f}, {area.high:.4f}] of {rows}",
        expected="the whole interval above 0: more is lost without the words said to count than without others",
    )


def _write(paths: ExplainPaths, report: ExplainReport) -> None:
    import pyarrow as pa
    from pyarrow import csv

    deletion = report.deletion
    columns: Mapping[str, list[float]] = {
        "fraction": deletion.fractions if deletion else [],
        "top": deletion.top if deletion else [],
        "random": deletion.random if deletion else [],
    }
    write_text(paths.explain_page, _page(report))
    with atomic_folder(paths.explain_plots) as folder:
        table = pa.table({name: pa.array(values, pa.float64()) for name, values in columns.items()})
        csv.write_csv(table, folder / "deletion.csv")


def _page(report: ExplainReport) -> str:
    filters = {"signed": lambda value: f"{value:+.4f}".replace("-", "−")}
    return render(Path(__file__).with_name("explain.html.j2"), filters, report=report, weight=_weight)


def _weight(value: float, words: Sequence[Word]) -> float:
    """How strongly a word is coloured: 0 to 1, beside the strongest of its row."""
    strongest = max((abs(word.attribution) for word in words), default=0.0)
    return round(abs(value) / strongest, 3) if strongest else 0.0


if __name__ == "__main__":
    run_stage(run)
