"""What reweighing does to a model: the default job on texts with a planted bias, with and without it.

    python -m benchmarks.mitigation [ROWS]

Trains the base model of params.yaml three times on rows of benchmarks/planted.py (ROWS of each group, DPL 0.5), in a
folder of its own, and prints what each model says of unbiased test rows: its accuracy against what the texts say, the
rate of "positive" by group, and the flips and the mean |Δp| when "he" and "she" are swapped.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import planted
from stages import finetune, mitigate, tokenize
from tunewright.base_models import local_model
from tunewright.compute import open_tuned, predict, read_tokens, set_up
from tunewright.files import read_parquet, sha256_tree, write_json, write_parquet
from tunewright.groups import attributes, read_lexicon
from tunewright.params import load_params
from tunewright.task import load_task

GAP = 0.5
SWAPPED = {"he": "she", "she": "he"}


def main(rows: int) -> None:
    import numpy as np
    import pyarrow as pa

    params: Any = load_params()
    task = load_task(params.task)
    lexicon = Path(params.paths.lexicon).resolve()
    base = local_model(params.fetch_model.model_name_or_path, Path(params.paths.model_source).resolve())
    set_up(params.num_threads, params.seed)
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        test = planted.rows(400, gap=0.0, seed=7)
        swapped = [row | {"text": _swapped(row["text"])} for row in test]
        for split, made in (
            ("train", planted.rows(rows, GAP, seed=1)),
            ("validation", planted.rows(200, GAP, seed=2)),
            ("test", [*test, *swapped]),
        ):
            listed = [{"row_id": f"{split}{at}", **row} for at, row in enumerate(made)]
            write_parquet(pa.Table.from_pylist(listed), Path(f"prepared/{split}.parquet"))
        write_json(Path("features/features.json"), {"applies": False})
        audit = params.audit_data.model_copy(update={"sensitive_features": ["text.gender"]})
        print(f"{'':10} {'DPL of train':>12} {'accuracy':>9} {'men':>6} {'women':>6} {'flips':>6} {'|Δp|':>6} {'s':>5}")
        for method in ("none", "reweigh", "resample"):
            chosen = mitigate.MitigateParams(
                method=method,  # type: ignore[arg-type]
                sensitive_feature=None if method == "none" else "text.gender",
            )
            paths = mitigate.MitigatePaths(
                prepared=Path("prepared"), lexicon=lexicon, training_weights=Path("weights.parquet")
            )
            report = mitigate.run(paths, chosen, task, audit, params.prepare.privacy, params.seed)
            judged = {
                "prepared": sha256_tree(Path("prepared")),
                "training_weights": sha256_tree(Path("weights.parquet")),
            }
            write_json(Path("passed"), judged)
            started = time.perf_counter()
            probabilities = _trained(params, task, base)
            seconds = time.perf_counter() - started
            before, after = probabilities[: len(test)], probabilities[len(test) :]
            favourable, said = before > 0.5, np.array([row["praised"] for row in test])
            (gender,) = attributes(
                read_parquet(Path("prepared/test.parquet")), ["text.gender"], {}, [], read_lexicon(lexicon), str, "test"
            )
            rates = [favourable[gender.members[group][: len(test)]].mean() for group in ("men", "women")]
            against = report.after.groups["women"].against_reference if report.after is not None else None
            left = against.difference_in_proportions if against is not None else GAP
            print(
                f"{method:10} {left:12.3f} {(favourable == said).mean():9.3f} {rates[0]:6.3f} {rates[1]:6.3f} "
                f"{(favourable != (after > 0.5)).mean():6.3f} {np.abs(before - after).mean():6.3f} {seconds:5.0f}",
                flush=True,
            )


def _trained(params: Any, task: Any, base: Path) -> Any:
    """The probability of "positive" for each row of test, by a model trained on them as they are weighed."""
    import numpy as np

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
    model = open_tuned(task, Path("tuned")).eval()
    logits = predict(model, task, read_tokens(Path("tokens/test.arrow")), 64, 0)
    return 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))


def _swapped(text: str) -> str:
    first, rest = text.split(" ", 1)
    return f"{SWAPPED[first]} {rest}"


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 800)
