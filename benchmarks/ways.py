"""One job tuned in every way: what docs/recipes.md shows beside the recipes.

    python -m benchmarks.ways                                               the job of params.yaml
    python -m benchmarks.ways --params recipes/dialogue.yaml --max-steps 40

The data stages run once; then each way trains from the same base model on the same rows, and is read on the test split.
A row a way: its trainable weights, the seconds of training (the checks on validation and, for `head`, the extraction of
features counted), and the metric with its interval, beside that of the baseline and of the untouched base model.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from typing import Any

from tunewright.errors import UserError
from tunewright.job import Job, load

KEYS = ("freeze_trainable_layers", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "num_virtual_tokens")
LOW_RANK = {"lora_r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "lora_target_modules": "all-linear"}
# An adapter wants some ten times the rate of full tuning; where none stands here, it is that of the params.
WAYS: dict[str, dict[str, Any]] = {
    "full": {},
    "freeze": {"freeze_trainable_layers": 2},
    "head": {"learning_rate": 1e-3},
    "lora": {"learning_rate": 1e-3, **LOW_RANK},
    "dora": {"learning_rate": 1e-3, **LOW_RANK},
    "ia3": {"learning_rate": 1e-2},
    "prompt": {"learning_rate": 1e-2, "num_virtual_tokens": 16},
    "prefix": {"learning_rate": 1e-2, "num_virtual_tokens": 16},
}
AGAIN = ("features", "find_lr", "finetune", "evaluate")


def tuned(params: str, way: str, max_steps: int, folder: str, data: Job | None) -> tuple[Job, float]:
    """The job tuned that way, and the seconds that it took; `data`: a job whose other stages stand already."""
    settings = {**dict.fromkeys(KEYS), "finetuning_type": way, "max_steps": max_steps, **WAYS[way]}
    job = load(params, {f"finetune.{key}": value for key, value in settings.items()}, folder)
    if data is not None:
        job.reports = {stage: report for stage, report in data.reports.items() if stage not in AGAIN}
    for stage in job.needed("evaluate"):
        if stage not in AGAIN:
            job.run(stage)
    started = time.perf_counter()
    job.fit()
    seconds = time.perf_counter() - started
    job.evaluate()
    return job, seconds


def main() -> None:
    """Tune in each way, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", default="params.yaml")
    parser.add_argument("--max-steps", type=int, default=-1)
    parser.add_argument("ways", nargs="*", metavar="WAY")
    wanted = parser.parse_args()
    job: Job | None = None
    with tempfile.TemporaryDirectory() as folder:
        for way in wanted.ways or WAYS:
            try:
                job, seconds = tuned(wanted.params, way, wanted.max_steps, folder, job)
            except UserError as error:
                print(f"| `{way}` | refused: {error} |", flush=True)
                continue
            print(row(way, job, seconds), flush=True)


def row(way: str, job: Job, seconds: float) -> str:
    """The table's row of a way."""
    evaluate: Any = job.reports["evaluate"]
    trained: Any = job.reports["finetune"]
    found = evaluate.splits["test"].metrics[evaluate.metric]
    others = " | ".join(_value(job.reports[stage], evaluate.metric) for stage in ("evaluate_base", "baseline"))
    share = f"{trained.trainable_parameters:,} of {trained.parameters:,}"
    value = f"{found.value:.4g} ({found.low:.4g} to {found.high:.4g})"
    return f"| `{way}` | {share} | {seconds:.0f} s | {evaluate.metric} | {others} | {value} |"


def _value(report: Any, metric: str) -> str:
    return f"{report.splits['test'].metrics[metric].value:.4g}" if report.applies else "–"


if __name__ == "__main__":
    main()
