"""What `tunewright init` puts into params.yaml for a profiled file, and the reason of each value.

A threshold is a floor that a first run can reach honestly: better than an answer that never looks at the text, and
not clearly worse than counted words. It is there to be raised.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from flows.edit import Place, commented, replaced
from flows.guess import Labels, Roles, counted
from flows.tally import Tally
from tunewright.files import read_json
from tunewright.profile import Profile, inward, outward
from tunewright.sniff import Described

SPLITS = ("train", "validation", "test")
SMALL = 2000  # rows; of fewer, more go to validation and test
CHANCE = 3.5  # standard errors that a share may be off
MAX_GROUP_SHARE = 0.1
MAX_TIME_GAP = 0.1
MIN_SPLIT_ROWS = 5  # of each label
MIN_LENGTH = 32  # tokens
MAX_LENGTH = 512
MAX_UNKNOWN = 0.05  # of the tokens
STEPS = 400  # optimizer steps that a first run should have, in as many epochs as that takes
MAX_EPOCHS = 8
TOKENS_A_SECOND = 1300  # of the package's model, all of its weights, on two cores
LONG_SECONDS = 3600


class Draft:
    """New values for params.yaml, and why."""

    def __init__(self, template: Any) -> None:
        self._template = template
        self.values: dict[Place, Any] = {}
        self.reasons: dict[Place, str] = {}

    def set(self, dotted: str, value: Any, reason: str = "") -> None:
        """Set a key, with its reason."""
        self.values[tuple(dotted.split("."))] = value
        self.say(dotted, reason)

    def say(self, dotted: str, reason: str) -> None:
        """Say something beside a key."""
        if reason:
            self.reasons[tuple(dotted.split("."))] = reason

    def standing(self, dotted: str) -> Any:
        """The template's own value."""
        value = self._template
        for part in dotted.split("."):
            value = value[part]
        return value

    def text(self, template: str) -> str:
        """The new params.yaml."""
        return commented(replaced(template, self.values), self.reasons)


@dataclass(frozen=True)
class Split:
    """How the rows are split, and what is to be expected of each split."""

    by: Literal["text", "group", "time", "given"]
    column: str | None
    borders: tuple[str, str] | None
    shares: dict[str, float]
    rows: dict[str, int]
    gap: float
    """How far a label's share in a split may be from the whole."""
    reason: str


def chosen_split(draft: Draft, found: Profile, what: Roles, seen: Tally) -> Split:
    """By the column that names the splits, by group or by time where such a column is convincing; else by text."""
    kept = round(seen.kept * found.rows / seen.rows)
    total = sum(seen.label_counts.values())
    standing = draft.standing("prepare.split")
    shares = {"train": 0.7, "validation": 0.15, "test": 0.15} if kept < SMALL else dict(standing)
    rows = {split: round(kept * share) for split, share in shares.items()}
    p = max(seen.label_counts.values(), key=lambda count: -abs(count / total - 0.5)) / total
    chance = CHANCE * math.sqrt(p * (1 - p) / (kept * min(shares["validation"], shares["test"])))

    if what.split is not None and _fit(seen.given, seen):
        sizes = {split: round(kept * seen.given[split].total() / total) for split in SPLITS}
        return Split("given", what.split, None, shares, sizes, _gap(seen.given, seen) + 0.02, what.reasons["given"])
    if what.group is not None and seen.largest_group <= MAX_GROUP_SHARE * total:
        # Whole groups move, so the shares of their rows scatter more than those of single rows.
        gap = chance * math.sqrt(max(1.0, total / found.columns[what.group].distinct))
        reason = f"{what.reasons['group']}: those of one stay together"
        return Split("group", what.group, None, shares, rows, gap, reason)
    borders = _borders(seen.days, shares)
    if what.time is not None and borders is not None:
        parts = _by_time(seen.days, borders)
        if _fit(parts, seen) and _gap(parts, seen) <= MAX_TIME_GAP:
            sizes = {split: round(kept * parts[split].total() / total) for split in SPLITS}
            reason = f"{what.reasons['time']}: tested on later rows than it has learned from"
            return Split("time", what.time, borders, shares, sizes, _gap(parts, seen) + 0.02, reason)
    return Split("text", None, None, shares, rows, chance, "no column of splits, groups or dates is convincing")


def _borders(days: dict[str, Counter[str]], shares: dict[str, float]) -> tuple[str, str] | None:
    """The days on which validation and test begin, so that the splits come near their shares."""
    total = sum(count.total() for count in days.values())
    ends = (shares["train"], shares["train"] + shares["validation"])
    before, starts = 0, list[str]()
    for day in sorted(days):
        if len(starts) < 2 and before >= ends[len(starts)] * total:
            starts.append(day)
        before += days[day].total()
    return (starts[0], starts[1]) if len(starts) == 2 else None


def _by_time(days: dict[str, Counter[str]], borders: tuple[str, str]) -> dict[str, Counter[str]]:
    parts: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    for day, counts in days.items():
        parts["train" if day < borders[0] else "validation" if day < borders[1] else "test"].update(counts)
    return parts


def _fit(parts: dict[str, Counter[str]], seen: Tally) -> bool:
    """Whether every split has rows of every label."""
    return all(
        split in parts and parts[split][label] >= MIN_SPLIT_ROWS for split in SPLITS for label in seen.label_counts
    )


def _gap(parts: dict[str, Counter[str]], seen: Tally) -> float:
    total = sum(seen.label_counts.values())
    return max(
        abs(counts[label] / counts.total() - count / total)
        for counts in parts.values()
        for label, count in seen.label_counts.items()
    )


def source(
    draft: Draft,
    described: Described,
    what: Roles,
    labels: Labels,
    split: Split,
    raw: Path,
    path: str,
    license_: str | None,
) -> None:
    """The job, and the one source of rows."""
    draft.set("task.type", "text_classification", f"one label a row, in `{what.label}`")
    draft.set("task.labels", labels.names, labels.reason)
    draft.set("paths.raw", raw.as_posix())
    keys: dict[str, Any] = {
        "name": raw.name,
        "path": path,
        "format": described.format,
        "license": license_ or "unknown",
        "encoding": described.encoding,
        "delimiter": described.delimiter,
        "column_names": described.column_names,
        "quoting": described.quoting,
        "id_column": what.id,
        "text_column": what.text,
        "label_column": what.label,
        "label_bins": labels.bins,
        "keep_columns": [split.column] if split.column is not None else [],
    }
    # What may be left out is, where it says what holds anyway.
    usual = {"encoding": "utf-8", "quoting": "minimal"}
    optional = ("delimiter", "column_names", "id_column", "label_bins")
    keys = {
        key: value for key, value in keys.items() if usual.get(key) != value and not (key in optional and not value)
    }
    draft.set("ingest.sources", [keys])
    draft.set("fetch_data.datasets", [])
    hashed = f"; {what.reasons['id']}" if what.id is None and described.format != "text_folder" else ""
    reasons = {
        **described.reasons,
        "license": "" if license_ else "no file tells its own: name it here",
        "id_column": what.reasons["id"],
        "text_column": what.reasons["text"],
        "label_column": what.reasons["label"] + hashed,
        "label_bins": "a row in no bin is dropped",
        "keep_columns": f"`{split.column}`, by which the rows are split" if split.column is not None else "",
    }
    draft.reasons |= {("ingest", "sources", 0, key): reasons[key] for key in keys if reasons.get(key)}


def contract(draft: Draft, found: Profile, seen: Tally) -> None:
    """What `ingest` lets through, and what `validate` asks of it."""
    ingested = round((seen.rows - seen.in_no_bin) * found.rows / seen.rows)
    draft.set("ingest.max_rejected_fraction", 0.0)
    if rejected := sum(found.rejected.values()):
        told = f"half more than found: {found.rejections}"
        draft.set("ingest.max_rejected_fraction", _up(1.5 * rejected / (found.rows + rejected), 3), told)
    if seen.control:
        draft.set("ingest.control_characters", "strip", f"{counted(seen.control, 'row')} with one, as NUL or ESC")
    longest = outward(1.25 * seen.longest)
    told = f"a quarter more than the longest, {seen.longest:,}"
    if longest > draft.standing("ingest.max_text_characters"):
        draft.set("ingest.max_text_characters", longest, told)
    draft.set("validate.text_max_length", longest, told)
    draft.set("validate.min_rows", max(1, inward(0.9 * ingested)), f"a tenth fewer than the {ingested:,} found")
    draft.set("validate.max_rows", outward(10 * ingested), "ten times as many: that is another data set")
    draft.set("validate.text_min_length", 1)
    if seen.empty_text:
        draft.set("validate.text_min_length", 0, f"{counted(seen.empty_text, 'empty text')}: prepare drops them")
    draft.set("validate.max_null_fraction", 0.0, "every row has text and label")
    if nulls := max(seen.null_label, seen.null_text):
        told = f"half more than found: {seen.null_label:,} rows without a label, {seen.null_text:,} without a text"
        draft.set("validate.max_null_fraction", min(1.0, _up(1.5 * nulls / seen.rows, 3)), told)
    draft.set("validate.unique_columns", ["row_id"])
    draft.set("validate.expectations", [])


def preparation(draft: Draft, what: Roles, labels: Labels, split: Split, seen: Tally) -> None:
    """The split, what is cleaned, how much may be dropped, and what a look for bias would need."""
    draft.set("prepare.split_by", split.by, split.reason)
    for by, key, column in (
        ("group", "group_column", what.group),
        ("time", "time_column", what.time),
        ("given", "split_column", what.split),
    ):
        draft.set(f"prepare.{key}", split.column if split.by == by else None)
        if split.by != by:
            unused = "; not convincing enough to split by" if column is not None and split.by == "text" else ""
            reason = what.reasons[by]
            draft.say(f"prepare.{key}", f"{reason}{unused}" if reason else "")
    draft.set("prepare.validation_from", split.borders[0] if split.borders else None)
    draft.set("prepare.test_from", split.borders[1] if split.borders else None)
    rows = ", ".join(f"{split.rows[name]:,} rows in {name}" for name in SPLITS)
    draft.set(
        "prepare.split", split.shares, f"about {rows}" + ("; as split_column says" if split.by == "given" else "")
    )
    steps = list(draft.standing("prepare.normalise"))
    if seen.entities > 0.005 * len(seen.texts) and "html_entities" not in steps:
        told = f"{seen.entities / len(seen.texts):.1%} of the texts hold entities such as &amp;"
        draft.set("prepare.normalise", ["html_entities", *steps], told)

    dropped = 1 - seen.kept / seen.rows
    told = f"{dropped:.1%} go (no bin, no label, equal texts), and a tenth is left for near duplicates"
    draft.set("gate_data.max_dropped_fraction", min(1.0, max(0.2, _up(dropped + 0.1, 2))), told)
    told = "two points more than it is" if split.by in ("time", "given") else f"{CHANCE} standard errors, by the rows"
    draft.set("gate_data.max_label_share_gap", max(0.05, _up(split.gap, 2)), told if split.gap > 0.05 else "")

    told = ""
    if what.sensitive:
        named = ", ".join(f"`{name}`" for name in what.sensitive)
        told = f"{named} may be one: to compare its groups, name it here and in keep_columns, and a favourable_label"
    draft.set("audit_data.sensitive_features", [], told)
    draft.set("audit_data.intersections", [])
    draft.set("audit_data.strata_column", None)
    draft.set("audit_data.reference_groups", {})
    draft.set("audit_data.favourable_label", "positive" if "positive" in labels.names else None)


def model(draft: Draft, seen: Tally, split: Split, name: str | None, revision: str | None) -> None:
    """The base model, the length that fits the texts, and a training that ends in reasonable time.

    name: as the user gave it, or None.
    """
    standing = draft.standing("fetch_model.model_name_or_path")
    chosen, why = (name, "as given") if name is not None else _candidate(standing)
    folder = _folder_of(chosen)
    if chosen != standing:
        draft.set("fetch_model.license", None, "as the model's own files say")
        if folder is not None and not chosen.startswith("package:"):
            draft.set("paths.model_source", chosen.removeprefix("./"))
    lengths, unknown, longest = _tokens(seen.texts, folder)
    if unknown > MAX_UNKNOWN:
        why += f"; but it does not know {unknown:.0%} of the tokens of these texts: take one of their language"
    draft.set("fetch_model.model_name_or_path", chosen, why)
    draft.set("fetch_model.model_revision", revision)

    p99 = lengths[int(0.99 * (len(lengths) - 1))]
    max_length = min(longest, MAX_LENGTH, max(MIN_LENGTH, -(-p99 // 16) * 16))
    cut = sum(length > max_length for length in lengths) / len(lengths)
    tokens = "tokens of this model" if folder is not None else "tokens, guessed by characters"
    draft.set("tokenize.max_length", max_length, f"99% of the texts have at most {p99} {tokens}; {cut:.1%} are cut")

    train = split.rows["train"]
    batch = 8 if train < 500 else 16 if train <= 50_000 else 32
    per_epoch = math.ceil(train / batch)
    epochs = min(MAX_EPOCHS, max(1, math.ceil(STEPS / per_epoch)))
    seconds = epochs * sum(min(length, max_length) for length in lengths) / len(lengths) * train / TOKENS_A_SECOND
    steps = -1
    told = ""
    if seconds > LONG_SECONDS:
        steps = max(1, int(epochs * per_epoch * LONG_SECONDS / 2 / seconds))
        told = f"half an hour or so on two cores, for a first look; with -1, all rows, {seconds / 3600:.0f} hours"
    draft.set("finetune.max_steps", steps, told)
    told = f"{counted(per_epoch, 'step')} an epoch, of about {train:,} rows"
    told += f"; some {STEPS} steps make a first run" if epochs > 1 else ""
    draft.set("finetune.num_train_epochs", epochs, told)
    draft.set("finetune.per_device_train_batch_size", batch)
    for key in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        draft.set(f"finetune.{key}", 0.0 if epochs == 1 else None)
    logging = max(1, min(per_epoch, steps if steps > 0 else per_epoch) // 20)
    draft.set("finetune.logging_steps", logging)
    draft.set("finetune.eval_steps", 10 * logging, "about twice an epoch" if steps < 0 else "")

    characters = sorted(map(len, seen.texts))
    quarters = {-(-characters[place * (len(characters) - 1) // 4] // 10) * 10 for place in (1, 2, 3)}
    draft.set("evaluate.length_slices", sorted(quarters), "about a quarter of the texts in each slice")
    draft.set("evaluate.slice_columns", [])


def _candidate(standing: str) -> tuple[str, str]:
    """The template's model, where it is here; else a model folder under models/; and why."""
    if not standing.startswith("package:"):
        return standing, "as it stood here"
    small = "small enough for a first run without a GPU, and in a package: nothing to download"
    if _folder_of(standing) is not None:
        return standing, small
    made = {"fetched", "base", "tuned", "export"}
    local = [file.parent for file in sorted(Path("models").glob("*/config.json")) if file.parent.name not in made]
    return (f"./{local[0].as_posix()}", "the model folder that is here") if local else (standing, small)


def _folder_of(name: str) -> Path | None:
    """The folder of a model that is here; None for one of the hub."""
    if not name.startswith("package:"):
        return Path(name) if name.startswith((".", "/")) and Path(name).is_dir() else None
    package, *rest = PurePosixPath(name.removeprefix("package:")).parts
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec is not None else None
    return Path(places[0], *rest) if places else None


def _tokens(texts: list[str], folder: Path | None) -> tuple[list[int], float, int]:
    """The lengths in tokens, sorted; the share of unknown tokens; the most tokens that the model takes."""
    if folder is None or not (folder / "tokenizer.json").is_file():
        # Some four letters of a script with spaces, or about one sign of one without, are a token.
        guessed = [2 + max(len(text) // 4, sum(not sign.isascii() for sign in text)) for text in texts]
        return sorted(guessed), 0.0, MAX_LENGTH
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    encoded = [found.tokens for found in tokenizer.encode_batch(texts)]
    unknown = sum(token in ("[UNK]", "<unk>") for tokens in encoded for token in tokens)
    longest = read_json(folder / "config.json").get("max_position_embeddings") or MAX_LENGTH
    return sorted(map(len, encoded)), unknown / sum(map(len, encoded)), int(longest)


def thresholds(draft: Draft, seen: Tally, labels: Labels, split: Split) -> None:
    """What the tuned model must reach on test."""
    most = max(seen.label_counts, key=lambda label: seen.label_counts[label])
    share = seen.label_counts[most] / sum(seen.label_counts.values())
    # Always the most frequent label: precision `share`, recall 1, and F1 = 0 for every other label.
    macro_f1 = 2 * share / (1 + share) / len(labels.names)
    told = f"`{most}` for every row gives {share:.2f} and {macro_f1:.2f}; these are a tenth of the way from there to 1"
    least = {name: _up(value + 0.1 * (1 - value), 2) for name, value in (("accuracy", share), ("macro_f1", macro_f1))}
    draft.set("verdict.min_metrics", least, f"{told}. Raise them")
    test = split.rows["test"]
    # Two classifiers, one of them right where the other is wrong in every fourth row: 95% of the chance.
    noise = 1.96 * math.sqrt(0.25 / test)
    told = f"chance alone moves it by {noise:.2f} on {test:,} test rows; and 0.02 worse at most. Raise it to 0"
    draft.set("verdict.min_margin_over_baseline", -_up(0.02 + noise, 2), told)
    ece = 0.1 if test >= 1000 else 0.15 if test >= 300 else 0.25
    draft.set("verdict.max_metrics", {"ece": ece}, "wide: so few test rows can't tell better" if ece > 0.1 else "")


def _up(number: float, digits: int) -> float:
    """Rounded up to so many digits after the point."""
    scale = float(10**digits)
    return math.ceil(round(number * scale, 6)) / scale


def card(draft: Draft, name: str) -> None:
    """The model's name; what the template says of another model and of other data goes."""
    draft.set("card.model_name", re.sub(r"[^\w.-]+", "-", name), "the rest is asked of you; null is left out")
    for key in ("language", "tags"):
        draft.set(f"card.{key}", [])
    for key in ("license", "intended_use", "out_of_scope_use", "limitations", "contact"):
        draft.set(f"card.{key}", None)
    for key in draft.standing("card.data"):
        draft.set(f"card.data.{key}", None)
    standing = draft.standing("fetch_model.model_name_or_path")
    if draft.values.get(("fetch_model", "model_name_or_path"), standing) != standing:
        draft.set("card.base_model", None)
