"""Look for what would make a score too good: test rows that stand in train, labels that can be read off.

Reads   paths.prepared    Parquet, one file a split
Report  paths.reports/check_leaks.json: counts, row ids and names of features, never a text

Four measures. Contamination: how much of each validation and test row stands in train, by n-grams of words. Label
names: whether a label's own name stands in the texts of that label. Words: whether a single word gives a label away.
Metadata: how well a model does that sees everything about a row but its words.

The first reads every row, in pieces; the others look at up to SAMPLE rows of a split, at even steps, and only where a
label names a row as a whole.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, Field, model_validator

from tunewright.errors import UserError
from tunewright.files import open_parquet, read_parquet
from tunewright.gates import Finding, Verdict
from tunewright.ngrams import Overlap, WordHashes, ngrams
from tunewright.params import Fraction, Section
from tunewright.privacy import mask
from tunewright.report import Report
from tunewright.stage import Dep, Key, Paths, run_stage
from tunewright.statistics import Estimate, bootstrap, error_reduction, mean, newcombe_interval
from tunewright.task import NAMED, TaskType
from tunewright.words import words

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from tunewright.ngrams import Hashes, Numbers

    Booleans = npt.NDArray[np.bool_]

HELD_OUT = ("validation", "test")
BATCH = 256  # rows that are held as texts at once
TRAIN_NGRAMS = 2**20  # of train, looked at together
HELD_NGRAMS = 2**23  # of held-out rows, compared in one pass over train: some 300 MB
SAMPLE = 50_000
SHOWN = 20  # rows, or words, that the report lists
SHOWN_FEATURES = 5

LIMITS = ("contamination_ngram", "contamination_overlap", "label_name_warn", "word_warn", "metadata_warn")

# What can be counted in a text without reading a word of it. Regular expressions of RE2.
COUNTS = {
    "words": r"[\p{L}\p{M}\p{N}]+",
    "uppercase": r"\p{Lu}",
    "digits": r"\p{Nd}",
    "punctuation": r"\p{P}",
    "symbols": r"\p{S}",
    "line_breaks": r"\n",
}
COUNTED = tuple(f"text.{count}" for count in ("characters", *COUNTS))


class CheckLeaksParams(Section):
    """The section `check_leaks` of params.yaml."""

    contamination_ngram: int = Field(ge=1, le=100, description="words; a text of fewer counts as a whole")
    contamination_overlap: float = Field(gt=0.0, le=1.0, description="of a row's n-grams in train: contaminated")
    contamination_warn: Fraction = Field(description="of the rows of a held-out split")
    contamination_fail: Fraction | None
    label_name_warn: Fraction = Field(description="rate of its name in a label's rows less the rate in all others")
    label_name_fail: Fraction | None
    word_warn: Fraction = Field(description="rate of a word in a label's rows less its rate in all others")
    word_fail: Fraction | None
    metadata_warn: Fraction = Field(description="share of the majority class's errors that metadata avoid")
    metadata_fail: Fraction | None
    accepted_features: list[str] = Field(description="metadata that may tell the label: measured, not judged")
    min_rows: int = Field(ge=10, description="fewer rows: insufficient")
    bootstrap_samples: int = Field(ge=100, le=100_000)
    confidence_level: Annotated[float, Field(gt=0.5, lt=1.0)]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for measure in ("contamination", "label_name", "word", "metadata"):
            fail = getattr(self, f"{measure}_fail")
            if fail is not None and fail < getattr(self, f"{measure}_warn"):
                raise ValueError(f"{measure}_warn at most as large as {measure}_fail")
        return self


class CheckLeaksPaths(Paths):
    """What check_leaks reads."""

    prepared: Dep


class ContaminatedRow(BaseModel):
    """A held-out row much of which stands in train."""

    row_id: str
    overlap: float
    """The share of its n-grams."""
    ngrams: int
    train_row_id: str
    """The row of train that holds most of them."""


class Contamination(BaseModel):
    """One held-out split against train."""

    rows: int
    rows_with_overlap: int
    """Rows that share one n-gram or more with train: the measure of GPT-3's paper."""
    contaminated: int
    """Rows of which at least `contamination_overlap` stands in train: the measure of PaLM's."""
    worst: list[ContaminatedRow]
    """The first SHOWN of the contaminated ones."""


class Tell(BaseModel):
    """How much more often something stands in the texts of a label than in all others."""

    label: str
    word: str | None
    """None for the label's own name."""
    rows: int
    """Of the label."""
    rows_with: int
    other_rows: int
    other_rows_with: int
    difference: Estimate
    """Of the two rates; Newcombe's interval at the confidence level adjusted to the number of labels (Bonferroni)."""


class FeatureReport(BaseModel):
    """What one feature tells of the label by itself, on validation."""

    name: str
    accepted: bool
    accuracy: float
    error_reduction: Estimate


class MetadataReport(BaseModel):
    """A decision tree on metadata against the commonest class of train, on validation."""

    train_rows: int
    validation_rows: int
    majority: str
    majority_accuracy: float
    accuracy: Estimate
    error_reduction: Estimate
    """The share of the majority class's errors that the tree does not make."""
    features: list[FeatureReport]
    """The strongest first; the accepted ones have no part in the tree."""


class CheckLeaksReport(Report):
    """Each measure, and what it is judged to be."""

    contamination: dict[str, Contamination]
    label_names: list[Tell]
    """One a label; none where labels are no names of a row as a whole."""
    words: list[Tell]
    """Those beyond `word_warn`, the strongest first; no other word is written down."""
    metadata: MetadataReport | None
    """None where it can't be measured."""
    limits: dict[str, float]
    """What the section sets, for whoever shows the measures."""
    findings: list[Finding]


@dataclass
class Sample:
    """What is held of some rows of a split: numbers, and metadata as they stand in the table."""

    several_labels: bool
    """Whether a row can have more than one."""
    labels: Booleans
    """(R, L): whether a row has a label of the task."""
    named: Booleans
    """(R, L): whether its text has the label's name."""
    words: Counter[str] = field(default_factory=Counter)
    """Word → rows that hold it."""
    label_words: list[Counter[str]] = field(default_factory=list)
    """The same for the rows of each label."""
    metadata: dict[str, list[Any]] = field(default_factory=dict)
    """Feature → its value in each row."""


def run(
    paths: CheckLeaksPaths,
    params: CheckLeaksParams,
    task: TaskType,
    seed: Annotated[int, Key("seed")],
    privacy: Annotated[Any, Key("prepare.privacy")],
) -> CheckLeaksReport:
    """Measure, and judge each measure by the limits of the section."""
    names = task.label_names
    masked = partial(mask, params=privacy)
    with open_parquet(paths.prepared / "train.parquet") as file:
        features = [*_metadata_columns(file.schema_arrow.names, task.columns), *COUNTED]
    unknown = sorted(set(params.accepted_features) - set(features))
    if unknown:
        raise UserError(
            f"check_leaks.accepted_features: found {', '.join(unknown)}; the features of {paths.prepared} are "
            f"{', '.join(features)}. Remove it, or name the column in ingest.sources[].keep_columns."
        )
    contamination = _contamination(paths.prepared, params, masked)
    findings = [_contamination_finding(split, found, params) for split, found in contamination.items()]
    limits = params.model_dump(include={*LIMITS})
    if task.label_kind not in NAMED:
        if task.label_kind != "none":
            findings.append(_unnamed_finding(params))
        return CheckLeaksReport(
            contamination=contamination, label_names=[], words=[], metadata=None, limits=limits, findings=findings
        )
    train = _sample(paths.prepared / "train.parquet", names, task.columns, masked)
    label_names = _label_names(train, names, params)
    tells, strongest = _tells(train, names, params)
    metadata = None
    if not train.several_labels:
        validation = _sample(paths.prepared / "validation.parquet", names, task.columns, masked)
        metadata = _metadata(train, validation, names, params, seed)
    return CheckLeaksReport(
        contamination=contamination,
        label_names=label_names,
        words=tells[:SHOWN],
        metadata=metadata,
        limits=limits,
        findings=[
            *findings,
            _names_finding(label_names, params),
            _words_finding(tells, strongest, params),
            _metadata_finding(metadata, train, params),
        ],
    )


def _contamination(prepared: Path, params: CheckLeaksParams, masked: Callable[[str], str]) -> dict[str, Contamination]:
    """Compare the held-out rows with train, as many of them in one pass over train as HELD_NGRAMS allows."""
    import numpy as np

    files = [prepared / f"{split}.parquet" for split in HELD_OUT]
    ends = np.cumsum([_rows(path) for path in files])
    hashes, n = WordHashes(), params.contamination_ngram
    shares = [np.empty(0)]
    worst: list[tuple[float, int, int, int]] = []
    for first, held, places, rows in _pieces(files, n, hashes, HELD_NGRAMS):
        overlap = Overlap(held, places, rows)
        for start, seen, seen_places, _ in _pieces([prepared / "train.parquet"], n, hashes, TRAIN_NGRAMS):
            overlap.see(seen, seen_places + start)
        found = overlap.shares()
        shares.append(found)
        for of_split in np.split(np.arange(rows), np.clip(ends[:-1] - first, 0, rows)):
            high = of_split[found[of_split] >= params.contamination_overlap]
            high = high[np.lexsort((-overlap.ngrams[high], -found[high]))][:SHOWN]
            worst += [(-found[row], -overlap.ngrams[row], first + row, overlap.likest(row)) for row in high.tolist()]
    of_train = read_parquet(prepared / "train.parquet", columns=["row_id"])["row_id"] if worst else []
    result = {}
    start = 0
    for split, path, end, found in zip(HELD_OUT, files, ends, np.split(np.concatenate(shares), ends[:-1]), strict=True):
        listed = sorted(entry for entry in worst if start <= entry[2] < end)[:SHOWN]
        of_split = read_parquet(path, columns=["row_id"])["row_id"] if listed else []
        result[split] = Contamination(
            rows=len(found),
            rows_with_overlap=int((found > 0).sum()),
            contaminated=int((found >= params.contamination_overlap).sum()),
            worst=[
                ContaminatedRow(
                    row_id=masked(of_split[row - start].as_py()),
                    overlap=-share,
                    ngrams=-ngrams_of_row,
                    train_row_id=masked(of_train[like].as_py()),
                )
                for share, ngrams_of_row, row, like in listed
            ],
        )
        start = end
    return result


def _rows(path: Path) -> int:
    with open_parquet(path) as file:
        return int(file.metadata.num_rows)


def _pieces(files: Iterable[Path], n: int, hashes: WordHashes, most: int) -> Iterator[tuple[int, Hashes, Numbers, int]]:
    """The n-grams of the rows of files, in pieces of about `most`: first row, hashes, rows' places in it, rows."""
    import numpy as np

    first = rows = size = 0
    held: list[tuple[Hashes, Numbers]] = []

    def piece() -> tuple[int, Hashes, Numbers, int]:
        return first, np.concatenate([found for found, _ in held]), np.concatenate([places for _, places in held]), rows

    for path in files:
        with open_parquet(path) as file:
            for batch in file.iter_batches(BATCH, columns=["text"]):
                found, places = ngrams([hashes.of(text) for text in batch["text"].to_pylist()], n)
                held.append((found, places + rows))
                rows, size = rows + len(batch), size + len(found)
                if size >= most:
                    yield piece()
                    first, rows, size, held = first + rows, 0, 0, []
    if held:
        yield piece()


def _metadata_columns(columns: list[str], task_columns: tuple[str, ...]) -> list[str]:
    """The columns that say something of a row beside its text, its target and its label."""
    return [name for name in columns if name not in ("row_id", *task_columns)]


def _sample(path: Path, names: list[str], task_columns: tuple[str, ...], masked: Callable[[str], str]) -> Sample:
    """Up to SAMPLE rows of a split, at even steps over its file; words are those of the masked text."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    with open_parquet(path) as file:
        schema = file.schema_arrow
        columns = _metadata_columns(schema.names, task_columns)
        every = max(1, math.ceil(file.metadata.num_rows / SAMPLE))
        sample = Sample(
            several_labels=not pa.types.is_string(schema.field("label").type),
            labels=np.zeros((math.ceil(file.metadata.num_rows / every), len(names)), bool),
            named=np.zeros((math.ceil(file.metadata.num_rows / every), len(names)), bool),
            label_words=[Counter() for _ in names],
            metadata={name: [] for name in (*columns, *COUNTED)},
        )
        index = {name: place for place, name in enumerate(names)}
        name_of = _Names(names)
        start = row = 0
        for batch in file.iter_batches(BATCH, columns=[*columns, "text", "label"]):
            steps = np.arange(-start % every, len(batch), every)
            start += len(batch)
            # From their buffer: `pa.array` would import pandas, half a second.
            taken = batch.take(pa.Array.from_buffers(pa.int64(), len(steps), [None, pa.py_buffer(steps)]))
            for name in columns:
                sample.metadata[name] += taken[name].to_pylist()
            sample.metadata["text.characters"] += pc.utf8_length(taken["text"]).to_pylist()
            for name, pattern in COUNTS.items():
                counted = pc.count_substring_regex(taken["text"], pattern=pattern)
                sample.metadata[f"text.{name}"] += counted.to_pylist()
            for text, label in zip(taken["text"].to_pylist(), taken["label"].to_pylist(), strict=True):
                found = words(masked(text))
                distinct = set(found)
                sample.words.update(distinct)
                for place in {index[one] for one in ((label or []) if sample.several_labels else [label])}:
                    sample.labels[row, place] = True
                    sample.label_words[place].update(distinct)
                sample.named[row, name_of.find(text, found, distinct)] = True
                row += 1
    return sample


class _Names:
    """Finds the labels' names in texts, word by word."""

    def __init__(self, names: list[str]) -> None:
        self._by_first: dict[str, list[tuple[int, list[str]]]] = {}
        self._letters: dict[int, str] = {}
        for place, name in enumerate(names):
            parts = words(name)
            if len(name) == 1 and unicodedata.category(name) == "Lo":
                self._letters[place] = name  # of a script like Han, where a letter can be a word inside a run of others
            elif parts:
                self._by_first.setdefault(parts[0], []).append((place, parts))

    def find(self, text: str, found: list[str], distinct: set[str]) -> list[int]:
        """The places of the labels whose names stand in a text, given its words in order, and each once."""
        places = [place for place, letter in self._letters.items() if letter in text]
        for first in self._by_first.keys() & distinct:
            for place, parts in self._by_first[first]:
                if len(parts) == 1 or any(
                    found[at : at + len(parts)] == parts for at, word in enumerate(found) if word == first
                ):
                    places.append(place)
        return places


def _label_names(sample: Sample, names: list[str], params: CheckLeaksParams) -> list[Tell]:
    inside = (sample.named & sample.labels).sum(axis=0).tolist()
    total = sample.named.sum(axis=0).tolist()
    return [_tell(sample, names, place, None, inside[place], total[place], params) for place in range(len(names))]


def _tells(sample: Sample, names: list[str], params: CheckLeaksParams) -> tuple[list[Tell], float | None]:
    """The words that tell more than `word_warn`, and the most that any word tells; None where no label has the rows."""
    tells: list[Tell] = []
    strongest: float | None = None
    sizes = sample.labels.sum(axis=0).tolist()
    for place, counts in enumerate(sample.label_words):
        rows, others = sizes[place], len(sample.labels) - sizes[place]
        if min(rows, others) < params.min_rows:
            continue
        for word, inside in counts.items():
            difference = inside / rows - (sample.words[word] - inside) / others
            strongest = max(strongest or 0.0, difference)
            if difference > params.word_warn:
                tells.append(_tell(sample, names, place, word, inside, sample.words[word], params))
    tells.sort(key=lambda tell: (-tell.difference.value, tell.label, tell.word))
    return [tell for tell in tells if tell.difference.low > params.word_warn], strongest


def _tell(
    sample: Sample, names: list[str], place: int, word: str | None, inside: int, total: int, params: CheckLeaksParams
) -> Tell:
    rows = int(sample.labels[:, place].sum())
    others = len(sample.labels) - rows
    level = 1 - (1 - params.confidence_level) / len(names)
    low, high = newcombe_interval(inside, rows, total - inside, others, level)
    return Tell(
        label=names[place],
        word=word,
        rows=rows,
        rows_with=inside,
        other_rows=others,
        other_rows_with=total - inside,
        difference=Estimate(value=inside / max(rows, 1) - (total - inside) / max(others, 1), low=low, high=high),
    )


def _metadata(
    train: Sample, validation: Sample, names: list[str], params: CheckLeaksParams, seed: int
) -> MetadataReport | None:
    """A decision tree on all features that are not accepted, and one on each feature; None for too few rows."""
    import numpy as np
    from sklearn.tree import DecisionTreeClassifier

    labels, actual = train.labels.argmax(axis=1), validation.labels.argmax(axis=1)
    if min(len(labels), len(actual)) < params.min_rows or len(np.unique(labels)) < 2:
        return None
    features = {
        name: _encoded(values, validation.metadata[name], labels, seed)
        for name, values in train.metadata.items()
        if len(set(values)) > 1
    }

    def correct(chosen: list[str]) -> Booleans:
        """Whether a tree on these features is right, in each row of validation."""
        nothing = np.zeros((len(labels), 1)), np.zeros((len(actual), 1))
        sides = zip(nothing, *(features[name] for name in chosen), strict=True)
        seen, unseen = (np.hstack(side) for side in sides)
        leaf = max(5, len(labels) // 1000)
        tree = DecisionTreeClassifier(max_leaf_nodes=64, min_samples_leaf=leaf, random_state=seed)
        right: Booleans = tree.fit(seen, labels).predict(unseen) == actual
        return right

    majority = int(np.bincount(labels).argmax())
    before = actual == majority
    together = correct([name for name in features if name not in params.accepted_features])
    alone = {name: correct([name]) for name in features}
    estimates = bootstrap(
        {"accuracy": mean(together), "together": error_reduction(together, before)}
        | {f"alone {name}": error_reduction(right, before) for name, right in alone.items()},
        len(actual),
        params.bootstrap_samples,
        params.confidence_level,
        seed,
    )
    reports = [
        FeatureReport(
            name=name,
            accepted=name in params.accepted_features,
            accuracy=float(right.mean()),
            error_reduction=estimates[f"alone {name}"],
        )
        for name, right in alone.items()
    ]
    return MetadataReport(
        train_rows=len(labels),
        validation_rows=len(actual),
        majority=names[majority],
        majority_accuracy=float(before.mean()),
        accuracy=estimates["accuracy"],
        error_reduction=estimates["together"],
        features=sorted(reports, key=lambda found: (-found.error_reduction.value, found.name)),
    )


def _encoded(
    train: list[Any], validation: list[Any], labels: Numbers, seed: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """A feature as numbers, (rows, columns) of each split.

    A column of numbers is itself. Any other is its place in the order of train's values (dates are in order so), and
    the rates of the labels among the rows that share its value, each row's without its own part (cross-fitting).
    """
    import warnings

    import numpy as np
    from sklearn.model_selection import StratifiedKFold
    from sklearn.preprocessing import TargetEncoder

    numbers = _as_numbers(train), _as_numbers(validation)
    if numbers[0] is not None and numbers[1] is not None:
        return numbers[0], numbers[1]
    seen, unseen = (np.array([str(value or "") for value in side], object) for side in (train, validation))
    known, order = np.unique(seen, return_inverse=True)
    encoder = TargetEncoder(cv=StratifiedKFold(5, shuffle=True, random_state=seed))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")
        rates = encoder.fit_transform(seen[:, None], labels)
    return (
        np.column_stack([order, rates]),
        np.column_stack([np.searchsorted(known, unseen), encoder.transform(unseen[:, None])]),
    )


def _as_numbers(values: list[Any]) -> npt.NDArray[np.float64] | None:
    """Values as one column of numbers, nothing as NaN; None where one of them is no finite number."""
    import numpy as np

    try:
        numbers = [float(value) if value not in (None, "") else math.nan for value in values]
    except ValueError:
        return None
    filled = [number for number, value in zip(numbers, values, strict=True) if value not in (None, "")]
    return np.array(numbers)[:, None] if filled and all(map(math.isfinite, filled)) else None


def _finding(
    measure: str, params: CheckLeaksParams, value: float | None, found: str, expected: str, without: Verdict
) -> Finding:
    """A measured value held against the two limits of its measure; where there is none, the verdict is `without`."""
    warn, fail = getattr(params, f"{measure}_warn"), getattr(params, f"{measure}_fail")
    verdict = without
    if value is not None:
        verdict = "fail" if fail is not None and value > fail else "warn" if value > warn else "pass"
    return Finding(
        rule=f"check_leaks.{measure}_{'fail' if verdict == 'fail' else 'warn'}",
        verdict=verdict,
        found=found,
        expected=f"{expected}: at most {warn}" + ("" if fail is None else f"; it fails beyond {fail}"),
    )


def _contamination_finding(split: str, found: Contamination, params: CheckLeaksParams) -> Finding:
    share = found.contaminated / max(found.rows, 1)
    return _finding(
        "contamination",
        params,
        share if found.rows else None,
        found=(
            f"{split}: {found.contaminated} of {found.rows} rows ({share:.4f}) stand in train with at least "
            f"{params.contamination_overlap:.0%} of their {params.contamination_ngram}-grams of words; "
            f"{found.rows_with_overlap} share one or more"
        ),
        expected="share of such rows",
        without="insufficient",
    )


def _names_finding(tells: list[Tell], params: CheckLeaksParams) -> Finding:
    enough = [tell for tell in tells if min(tell.rows, tell.other_rows) >= params.min_rows]
    strongest = sorted(enough, key=lambda tell: (-tell.difference.low, tell.label))
    beyond = [tell for tell in strongest if tell.difference.low > params.label_name_warn]
    return _finding(
        "label_name",
        params,
        strongest[0].difference.low if strongest else None,
        found=_told(beyond or strongest[:1]) or _too_few(params),
        expected="a label's name more often in its own rows than in all others, by the interval's lower end",
        without="insufficient",
    )


def _words_finding(tells: list[Tell], strongest: float | None, params: CheckLeaksParams) -> Finding:
    nothing = f"no word; the largest difference is {strongest or 0:.4f}" if strongest is not None else _too_few(params)
    return _finding(
        "word",
        params,
        tells[0].difference.low if tells else None if strongest is None else 0.0,
        found=_told(tells) or nothing,
        expected="a word more often in the rows of a label than in all others, by the interval's lower end",
        without="insufficient",
    )


def _told(tells: list[Tell]) -> str:
    """The first three of them in words."""
    told = [
        f"`{tell.label}`: {'its name' if tell.word is None else f'the word `{tell.word}`'} in {tell.rows_with} of its "
        f"{tell.rows} rows and in {tell.other_rows_with} of {tell.other_rows} others (difference "
        f"{tell.difference.value:.4f}, interval {tell.difference.low:.4f} to {tell.difference.high:.4f})"
        for tell in tells[:3]
    ]
    return "; ".join([*told, f"{len(tells) - 3} more"] if tells[3:] else told)


def _too_few(params: CheckLeaksParams) -> str:
    return f"no label that {params.min_rows} rows of train have, and {params.min_rows} have not"


def _metadata_finding(found: MetadataReport | None, train: Sample, params: CheckLeaksParams) -> Finding:
    low: float | None = None
    if train.several_labels:
        told = "a row has several labels, so there is no majority class to compare with"
    elif found is None:
        told = f"fewer than {params.min_rows} rows in train or in validation, or one label only"
    else:
        judged = [feature for feature in found.features if not feature.accepted]
        low = max([found.error_reduction.low, *(feature.error_reduction.low for feature in judged)])
        told = (
            f"accuracy {found.accuracy.value:.4f} on validation by metadata alone, {found.majority_accuracy:.4f} by "
            f"the majority class: {found.error_reduction.value:.4f} of its errors avoided, interval "
            f"{found.error_reduction.low:.4f} to {found.error_reduction.high:.4f}"
        )
        carried = [feature for feature in judged if feature.error_reduction.low > 0][:SHOWN_FEATURES]
        accepted = [feature for feature in found.features if feature.accepted]
        for word, features in (("carried by", carried), ("accepted", accepted)):
            listed = ", ".join(f"`{feature.name}` (accuracy {feature.accuracy:.4f} alone)" for feature in features)
            told += f"; {word} {listed}" if listed else ""
    return _finding(
        "metadata",
        params,
        low,
        found=told,
        expected="share of the majority class's errors that metadata avoid, by the interval's lower end",
        without="not_assessed" if train.several_labels else "insufficient",
    )


def _unnamed_finding(params: CheckLeaksParams) -> Finding:
    return _finding(
        "metadata",
        params,
        None,
        found="no label names a row as a whole, so names, words and metadata are not held against it",
        expected="share of the majority class's errors that metadata avoid, by the interval's lower end",
        without="not_assessed",
    )


if __name__ == "__main__":
    run_stage(run)
