"""`tunewright card`: the model card of a run, with what the run cost joined in. Cached outputs stay as they are."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from flows import record
from flows.costs import costs
from tunewright.errors import UserError
from tunewright.files import atomic_folder, canonical_json
from tunewright.markdown import table
from tunewright.model_card import COST_PLACE
from tunewright.params import load_params

PAGE_PLACE = "<!-- cost of compute -->"
"""Where stages/report.html.j2 leaves room for it."""
COST_FILE = "cost.json"
Rows = list[tuple[str, str]]


def card(output: Path | None) -> str:
    """The card as Markdown; or with a folder, where the card, the data sheet, the report's page and cost.json are now.

    Raises
        UserError  where there is no card yet, or the folder holds something else.
    """
    told = pages()
    if output is None:
        return told["README.md"]
    _check_ours(output, [*told, COST_FILE, Path(load_params().paths.report_page).name])
    with atomic_folder(output) as into:
        for name, text in told.items():
            (into / name).write_text(text, encoding="utf-8", newline="")
    return f"{output}: {', '.join(sorted(found.name for found in output.iterdir()))}"


def pages() -> dict[str, str]:
    """Name → text of what is to be published: the card and the data sheet with card.json, the report's page, cost.json;
    the cost joined into them where it is known.

    Raises
        UserError  where there is no card yet.
    """
    params = load_params()
    folder = Path(params.paths.card)
    if not (folder / "README.md").is_file():
        raise UserError(f"{folder / 'README.md'}: not found. `tunewright run` makes it.")
    found = {file.name: _text(file) for file in sorted(folder.iterdir())}
    page = Path(params.paths.report_page)
    if page.is_file():
        found[page.name] = _text(page)
    run = record.read()
    cost = costs(run["stages"], params) if run else None
    if cost is not None:
        told = {**cost, "commit": run["commit"], "ended": run["ended"]}
        found["README.md"] = found["README.md"].replace(COST_PLACE, _markdown(told))
        if page.name in found:
            found[page.name] = found[page.name].replace(PAGE_PLACE, _html(told))
        found[COST_FILE] = canonical_json(told)
    return found


def _text(file: Path) -> str:
    with file.open(encoding="utf-8", newline="") as stream:  # its line ends as they are
        return stream.read()


def _check_ours(output: Path, names: list[str]) -> None:
    if output.is_file():
        raise UserError(f"{output}: is a file; expected a folder, which is made.")
    other = sorted(found.name for found in output.iterdir() if found.name not in names) if output.is_dir() else []
    if other:
        raise UserError(
            f"{output}: holds {', '.join(other[:3])}, which is no part of a card. Name a folder of its own."
        )


def _rows(told: dict[str, Any]) -> Rows:
    """What there is to tell: a name, and a figure with its unit."""
    model, settings = told["model"], told["settings"]
    rows = [
        ("electricity", f"{model['kwh']:.3g} kWh"),
        ("greenhouse gases", f"{model['co2_grams']:.3g} g CO₂e"),
        ("hours of processor cores", f"{model['cpu_hours']:.3g}"),
        ("hours of GPUs", f"{model['gpu_hours']:.3g}"),
        ("electricity of the last run alone", f"{told['run']['kwh']:.3g} kWh"),
        ("at", f"{settings['carbon_intensity_g_per_kwh']:g} g CO₂e a kWh, PUE {settings['pue']:g}"),
    ]
    if told["tokens_trained"]:
        rows.insert(4, ("tokens trained on", f"{told['tokens_trained']:,}"))
    return rows


def _sentence(told: dict[str, Any]) -> str:
    model, settings = told["model"], told["settings"]
    how = [
        "the processor's energy was counted by itself"
        if "cpu" in model["counted"]
        else f"a busy core was taken for {settings['watts_per_cpu_core']:g} W"
    ]
    if model["gpu_kwh"] is None:
        how.append("the GPU's energy is not known and not in it")
    elif model["gpu_hours"]:
        counted = "gpu" in model["counted"]
        how.append("the GPU's was counted by itself" if counted else f"a GPU was taken for {settings['gpu_watts']:g} W")
    how.append(f"a GB of memory for {settings['watts_per_gb_memory']:g} W")
    unknown = told["unknown"]
    lacks = f" Not known, and not in it: {', '.join(unknown)}, which did not run here." if unknown else ""
    return (
        f"An estimate of the latest run of each stage that made this model: {', '.join(how)}. Disks, network and the "
        f"making of the machine are not in it.{lacks}"
    )


def _markdown(told: dict[str, Any]) -> str:
    return f"{_sentence(told)}\n\n{table(['', ''], _rows(told))}\n\nAll of it, stage by stage: `{COST_FILE}`."


def _html(told: dict[str, Any]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in _rows(told)
    )
    return (
        f'<section aria-labelledby="cost"><h2 id="cost">Cost of compute</h2><p>{escape(_sentence(told))}</p>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="Cost"><table><tbody>{rows}</tbody></table></div>'
        "</section>"
    )
