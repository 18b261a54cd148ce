"""The model card and the data sheet: every figure read from a report, by its place and the report's SHA-256.

Reads   paths.reports/STAGE.json of the stages that say something of the data or the model
Writes  paths.card  README.md, DATA_SHEET.md, and card.json: each figure with its file, JSON pointer and SHA-256
Report  paths.reports/card.json: the same, and the keys of this section that are not filled in

What only people know is asked for in this section; what is not known is left out. The cost of compute belongs to a run
and not to this content: `tunewright card` joins it in.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from pydantic import Field

from tunewright.data_sheet import data_sheet
from tunewright.facts import Fact, Facts
from tunewright.files import atomic_folder, canonical_json
from tunewright.model_card import model_card
from tunewright.params import Section
from tunewright.privacy import mask
from tunewright.report import Report
from tunewright.stage import Dep, Key, Out, Paths, run_stage
from tunewright.task import TaskType
from tunewright.telling import Telling

Asked = Annotated[str, Field(min_length=1)] | None


class CardPaths(Paths):
    fetch_data_report: Dep
    ingest_report: Dep
    prepare_report: Dep
    audit_data_report: Dep
    mitigate_report: Dep
    check_leaks_report: Dep
    fetch_model_report: Dep
    init_model_report: Dep
    finetune_report: Dep
    baseline_report: Dep
    evaluate_base_report: Dep
    evaluate_report: Dep
    suites_report: Dep
    control_report: Dep
    audit_model_report: Dep
    explain_report: Dep
    memorization_report: Dep
    threshold_policy_report: Dep
    verdict_report: Dep
    card: Out


class DataParams(Section):
    """What the data sheet asks people for (Gebru et al. 2018)."""

    motivation: Asked = Field(default=None, description="why and by whom the data was made")
    collection_process: Asked = Field(default=None, description="how it was gathered, when, and who agreed")
    labelling: Asked = Field(default=None, description="who labelled it, and by what rules")
    uses: Asked = Field(default=None, description="what it should and should not be used for")
    distribution: Asked = Field(default=None, description="who may have it, and from where")
    maintenance: Asked = Field(default=None, description="who keeps it, and how faults are told")


class CardParams(Section):
    """What only people know of the model. Null: left out of the card."""

    model_name: Annotated[str, Field(pattern=r"^[\w.-]+$")] | None = Field(
        default=None, description="the title, and the name in the Hub's model-index"
    )
    language: list[Annotated[str, Field(pattern=r"^([a-z]{2,3}|code|multilingual)$")]] = Field(
        default_factory=list, description="codes of ISO 639, or code, or multilingual"
    )
    license: Asked = Field(default=None, description="of the tuned model; null: the base model's")
    base_model: Annotated[str, Field(pattern=r"^[\w-][\w.-]*/[\w-][\w.-]*$")] | None = Field(
        default=None, description="its id on the Hub, where fetch_model.model_name_or_path is another name"
    )
    tags: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list, description="for the Hub's search")
    intended_use: Asked = Field(default=None, description="what the model is for, and for whom")
    out_of_scope_use: Asked = Field(default=None, description="what it must not be used for")
    limitations: Asked = Field(default=None, description="what is known to go wrong")
    contact: Asked = Field(default=None, description="whom to ask and to tell of faults")
    data: DataParams = Field(default_factory=DataParams, description="of the data sheet")


class CardReport(Report):
    """Every figure of both pages, by name: the stage and the keys below it.

    `settings`: params that shaped the weights, without those that are null. `kept_back`: of these, what a private
    training's guarantee hangs on, so that no page may hold its value. `left_out`: keys of the section that hold
    nothing.
    """

    facts: dict[str, Fact]
    settings: dict[str, Any]
    kept_back: list[str]
    left_out: list[str]


def run(
    paths: CardPaths,
    params: CardParams,
    task: TaskType,
    seed: Annotated[int, Key("seed")],
    training: Annotated[Any, Key("finetune")],
    max_length: Annotated[int, Key("tokenize.max_length")],
    confidence_level: Annotated[float, Key("evaluate.confidence_level")],
    attack_level: Annotated[float, Key("memorization.confidence_level")],
    privacy: Annotated[Any, Key("prepare.privacy")],
) -> CardReport:
    """Write both pages and the list of their figures."""
    facts = Facts({field.removesuffix("_report"): path for field, path in paths if field.endswith("_report")})
    masked = partial(mask, params=privacy)
    settings: dict[str, Any] = {"seed": seed, "tokenize.max_length": max_length}
    kept_back = ["seed"] if facts.look("finetune", "differential_privacy") else []
    settings |= {"evaluate.confidence_level": confidence_level, "memorization.confidence_level": attack_level}
    chosen = training.model_dump(mode="json", exclude_none=True)
    settings |= {f"finetune.{key}": value for key, value in chosen.items()}
    settings = {key: value for key, value in settings.items() if key not in kept_back}
    pages = {
        "README.md": model_card(Telling(facts, masked), params, task, settings, kept_back),
        "DATA_SHEET.md": data_sheet(Telling(facts, masked), params),
    }
    asked = {**dict(params), **{f"data.{key}": value for key, value in dict(params.data).items()}}
    report = CardReport(
        facts=dict(sorted(facts.taken.items())),
        settings=settings,
        kept_back=kept_back,
        left_out=[f"card.{key}" for key, value in asked.items() if value in (None, [])],
    )
    with atomic_folder(paths.card) as folder:
        for name, text in pages.items():
            (folder / name).write_text(text, encoding="utf-8", newline="\n")
        listed = report.model_dump(mode="json", include={"facts", "settings", "kept_back"})
        (folder / "card.json").write_text(canonical_json(listed), encoding="utf-8", newline="\n")
    return report


if __name__ == "__main__":
    run_stage(run)
