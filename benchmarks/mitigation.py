"""What a mitigation of the data does to a model: flips and AUCs by group, without and with it.

    python -m benchmarks.mitigation [METHOD] [ROWS]

Real movie reviews that mention nobody get a first sentence about a woman or a man. In ROWS rows of train (1,200), and
in validation, nine of ten favourable reviews get a man and nine of ten unfavourable ones a woman: DPL 0.8. In the 400
rows of test both labels have as many of either. The base model of params.yaml is trained twice, as the rows are and as
METHOD mends them (reweigh, or resample), through the stages `mitigate`, `tokenize` and `finetune`, and measured on test
by what the stage `audit_model` measures with.
"""

from __future__ import annotations

import csv
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.scratch import table
from stages import finetune, mitigate, tokenize
from tunewright.base_models import local_model
from tunewright.compute import open_tuned, set_up
from tunewright.counterfactual import Swapper, flips, swapped_rows
from tunewright.files import read_parquet, sha256_file, sha256_tree, write_json, write_parquet
from tunewright.group_metrics import Measure, Rules, Scored, group_aucs
from tunewright.groups import Lexicon, attributes, read_lexicon
from tunewright.params import load_params
from tunewright.task import Predicting
from tunewright.task_types.text_classification import Task, TaskParams
from tunewright.tokenizer import open_tokenizer, token_table

ROWS = 1200
TEST_ROWS = 400
SHARE = 0.9
"""Of the favourable reviews in train that get a man, and of the others that get a woman."""
REVIEWS = Path("data/raw/movie_reviews/movie_reviews.tsv")
CLEAR = 1.0
"""A review's mean rating of −4 to 4 must lie so far from 0."""
LABELS = ("negative", "positive")
WOMEN = (
    "She directed it.",
    "The actress is in every scene.",
    "A woman wrote the script.",
    "It is about a mother.",
    "The story follows a young girl.",
    "The heroine is on screen throughout.",
    "It is the story of a queen.",
    "My sister took me to see it.",
)


def main(chosen: str = "reweigh", rows: int = ROWS) -> None:
    import pyarrow as pa

    params: Any = load_params()
    task = Task(TaskParams(type="text_classification", labels=list(LABELS)))
    lexicon_file = Path(params.paths.lexicon).resolve()
    lexicon = read_lexicon(lexicon_file)
    base = local_model(params.fetch_model.model_name_or_path, Path(params.paths.model_source).resolve())
    reviews = neutral_reviews(REVIEWS, lexicon)
    set_up(params.num_threads, params.seed)
    audit = params.audit_data.model_copy(
        update={"sensitive_features": ["text.gender"], "intersections": [], "reference_groups": {"text.gender": "men"}}
    )
    heads = ["", "DPL of train", "accuracy", "flip rate", "interval", "mean |Δp|"]
    aucs = [f"{auc} {group}" for auc in ("AUC", "BPSN", "BNSP") for group in ("women", "men")]
    lines: list[list[Any]] = [[*heads, *aucs, "seconds"]]
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        rng = random.Random(params.seed)
        swapper = Swapper(lexicon, "gender")
        for split, count, share in (("train", rows, SHARE), ("validation", 200, SHARE), ("test", TEST_ROWS, 0.5)):
            made = planted(reviews, count, share, swapper, rng)
            listed = [{"row_id": f"{split}{at}", **row} for at, row in enumerate(made)]
            write_parquet(pa.Table.from_pylist(listed), Path(f"prepared/{split}.parquet"))
        write_json(Path("features/features.json"), {"applies": False})
        for method in ("none", chosen):
            started = time.perf_counter()
            gap = mitigated(method, lexicon_file, params, task, audit)
            model = trained(params, task, base)
            measured = found(model, task, lexicon, params)
            lines.append([method, f"{gap:.3f}", *measured, f"{time.perf_counter() - started:.0f}"])
            print(method, *measured, file=sys.stderr, flush=True)
    # Turned: a column a model.
    print(table([list(column) for column in zip(*lines, strict=True)]))


def neutral_reviews(file: Path, lexicon: Lexicon) -> dict[str, list[str]]:
    """Label → the reviews that say clearly what they think, and mention nobody of the lexicon."""
    swapper = Swapper(lexicon, "gender")
    kept: dict[str, list[str]] = {label: [] for label in LABELS}
    with file.open(encoding="utf-8", newline="") as lines:
        for _, rating, text in csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
            if abs(float(rating)) >= CLEAR and not lexicon.find(text) and swapper.swap(text, "") is None:
                kept[LABELS[float(rating) > 0]].append(text)
    return kept


def planted(
    reviews: dict[str, list[str]], count: int, share: float, swapper: Swapper, rng: random.Random
) -> list[dict[str, str]]:
    """`count` rows, half of each label, taken out of `reviews`; `share` of the favourable ones are about a man."""
    made = []
    for label in LABELS:
        rng.shuffle(reviews[label])
        of_men = round((share if label == "positive" else 1 - share) * count / 2)
        for at in range(count // 2):
            first = rng.choice(WOMEN)
            sentence = swapper.swap(first, "") if at < of_men else first
            made.append({"text": f"{sentence} {reviews[label].pop()}", "label": label})
    rng.shuffle(made)
    return made


def mitigated(method: str, lexicon: Path, params: Any, task: Any, audit: Any) -> float:
    """Write the weights of train and let them pass; the DPL of train as it is then."""
    chosen = mitigate.MitigateParams(
        method=method,
        sensitive_feature=None if method == "none" else "text.gender",
    )
    paths = mitigate.MitigatePaths(prepared=Path("prepared"), lexicon=lexicon, training_weights=Path("weights.parquet"))
    report = mitigate.run(paths, chosen, task, audit, params.prepare.privacy, params.seed)
    write_json(
        Path("passed"),
        {"prepared": sha256_tree(Path("prepared")), "training_weights": sha256_file(Path("weights.parquet"))},
    )
    if report.after is None:
        return 2 * SHARE - 1
    against = report.after.groups["women"].against_reference
    assert against is not None
    return against.difference_in_proportions


def trained(params: Any, task: Any, base: Path) -> Path:
    """The folder of a model that is trained on the rows as they are weighed."""
    tokenize.run(
        tokenize.TokenizePaths(
            prepared=Path("prepared"),
            training_weights=Path("weights.parquet"),
            data_passed=Path("passed"),
            base_model=base,
            tokens=Path("tokens"),
            tokenize_plots=Path("plots"),
        ),
        params.tokenize,
        task,
    )
    paths = finetune.FinetunePaths(
        tokens=Path("tokens"),
        base_model=base,
        find_lr_report=Path("find_lr.json"),
        features=Path("features"),
        tuned_model=Path("tuned"),
        curves=Path("curves"),
    )
    finetune.run(paths, params.finetune, task, seed=params.seed, num_threads=params.num_threads)
    return paths.tuned_model


def found(folder: Path, task: Any, lexicon: Lexicon, params: Any) -> list[str]:
    """Accuracy, flip rate, its interval, mean |Δp|, and each group's AUCs on test."""
    import numpy as np

    limits = params.audit_model
    rules = Rules(
        min_group_size=limits.min_group_size,
        min_gate_group_size=limits.min_gate_group_size,
        confidence_level=limits.confidence_level,
        bootstrap_samples=limits.bootstrap_samples,
        calibration_bins=params.evaluate.calibration_bins,
        seed=params.seed,
    )
    file = Path("prepared/test.parquet")
    test = read_parquet(file)
    swapped, positions, _ = swapped_rows(test, Swapper(lexicon, "gender"), test.num_rows)
    assert len(positions) == test.num_rows
    tokenizer, model = open_tokenizer(folder), open_tuned(task, folder)
    before, after = (
        task.predict(
            model,
            tokenizer,
            rows,
            token_table(task, rows, tokenizer, params.tokenize.max_length).table.combine_chunks(),
            Predicting(params.evaluate.per_device_eval_batch_size, params.seed),
        )
        for rows in (test, swapped)
    )
    scores = np.stack([before[f"probability_{label}"].to_numpy() for label in LABELS], axis=1)
    labels = np.array([LABELS.index(label) for label in test["label"].to_pylist()])
    change = after["probability_positive"].to_numpy() - scores[:, 1]
    _, rate, moved = flips(before["predicted"].to_pylist(), after["predicted"].to_pylist(), change, rules)
    (gender,) = attributes(test, ["text.gender"], {}, [], lexicon, str, file)
    members = {group: np.flatnonzero(inside).tolist() for group, inside in gender.members.items()}
    ranked = {
        one.group: one
        for one in group_aucs(Scored(labels, scores.argmax(axis=1), scores, LABELS, favourable=1), members, rules)
    }
    aucs = [
        shown(getattr(ranked[group], name))
        for name in ("subgroup_auc", "bpsn_auc", "bnsp_auc")
        for group in ("women", "men")
    ]
    accuracy = (scores.argmax(axis=1) == labels).mean()
    return [f"{accuracy:.3f}", shown(rate), f"{rate.low:.3f} to {rate.high:.3f}", shown(moved), *aucs]


def shown(measure: Measure) -> str:
    return f"{measure.value:.3f}"


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
