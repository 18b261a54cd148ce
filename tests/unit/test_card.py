"""The model card and the data sheet of a run whose every figure is known: they say nothing that no report says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from benchmarks import planted
from flows.card import card as joined
from stages.card import CardParams, CardPaths, CardReport, DataParams, run
from stages.control import Abstention, Calibration, ControlReport
from stages.explain import ExplainReport
from stages.fetch_data import FetchDataReport
from stages.finetune import FinetuneParams
from stages.memorization import CanaryReport, MemorizationReport
from stages.mitigate import MitigateReport
from stages.suites import SuitesReport
from stages.threshold_policy import ThresholdPolicyReport
from tests.unit.test_mitigate import mitigate
from tests.unit.test_report import ACCURACY, estimate, reports
from tests.unit.test_threshold_policy import policy
from tunewright.errors import UserError
from tunewright.facts import pointer, resolve
from tunewright.files import read_json, sha256_file, sha256_tree, write_json
from tunewright.markdown import escape, paragraphs, table
from tunewright.model_card import COST_PLACE
from tunewright.params import load_params
from tunewright.private_training import PrivateTraining
from tunewright.task import TaskType
from tunewright.task_types import seq2seq_lm
from tunewright.task_types.text_classification import Task, TaskParams
from tunewright.telling import number

REPOSITORY = Path(__file__).parents[2]
FINDINGS = [
    {"rule": "verdict.min_metrics.accuracy", "verdict": "pass", "found": "0.8750 on test", "expected": "at least 0.8"},
    {"rule": "validate: rows", "verdict": "pass", "found": "1000", "expected": "at least 10"},
    {"rule": "drift.psi_warn", "verdict": "warn", "found": "PSI 0.15 <b>", "expected": "at most 0.1"},
]
FILLED = CardParams(
    model_name="reviews-1",
    language=["en", "fr"],
    base_model="somebody/base",
    tags=["sentiment"],
    intended_use="Reviews *only*.\n\nNo <b>mail</b>.",
    limitations="1. Irony | sarcasm",
    contact="someone@example.com",
    data=DataParams(motivation="# For a test"),
)
ANSWERED = {"rows": 96, "answered": 72, "errors": 9, "coverage": estimate(0.75), "risk": estimate(0.125)}
CHANGED = {
    "before": estimate(0.0625, 0.03125),
    "after": estimate(0.03125, 0.015625),
    "change": estimate(-0.03125, 0.015625),
}
PAIRS = {"pairs": 120, "ties": 0, "share": estimate(0.65625, 0.0625)}
WROTE = {"completions": 36, "hurtful": estimate(0.125), "categories": {}, "refused": None, "words": 7.25}
EXPOSED = {"number": 0, "repetitions": 0, "exposure": estimate(1.25)}
MEASURED: dict[str, dict[str, Any]] = {
    "control": {
        "calibration": Calibration(
            fitted=True,
            temperature=1.75,
            validation_rows=70,
            metrics={"ece": CHANGED},
            reliability_before=[],
            reliability_after=[],
        ).model_dump(mode="json"),
        "abstention": Abstention(
            rule="max_risk", limit=0.2, abstain_below=0.8125, splits={"validation": ANSWERED, "test": ANSWERED}
        ).model_dump(mode="json"),
    },
    "memorization": {
        "canaries": CanaryReport(
            references=255,
            secrets=10**6,
            by_chance=1.4427,
            highest_measurable=8.0,
            by_repetitions={0: 1.25, 8: 6.0},
            canaries=[
                EXPOSED,
                {"number": 1, "repetitions": 8, "exposure": estimate(5.5, 1.0)},
                {"number": 2, "repetitions": 8, "exposure": estimate(6.5, 1.0)},
            ],
        ).model_dump(mode="json")
    },
    "finetune": {
        "differential_privacy": PrivateTraining(
            epsilon=7.9375,
            delta=1e-06,
            accountant="prv",
            noise_multiplier=0.84375,
            max_grad_norm=1.5,
            sample_rate=0.0125,
            steps=300,
            mean_batch=6.8,
        ).model_dump(mode="json")
    },
    "suites": SuitesReport(
        models={
            "tuned": {
                "pairs": {
                    "winogender": {
                        "pairs_found": 240,
                        "dropped": {},
                        "pairs": 240,
                        "preference": PAIRS,
                        "by_stereotype": {},
                        "gaps": {"female": estimate(-1.25), "neutral": estimate(-2.5)},
                    }
                },
                "completions": {
                    "prompts": {
                        "gender": {
                            "reference": "men",
                            "comparison_confidence_level": 0.95,
                            "groups": {"men": WROTE, "wo<b>men": {**WROTE, "refused": estimate(0.5)}},
                            "gaps": {"wo<b>men": {"hurtful": estimate(0.0625)}},
                        }
                    }
                },
            },
            "base": {
                "pairs": {
                    "winogender": {
                        "pairs_found": 240,
                        "dropped": {},
                        "pairs": 240,
                        "preference": {**PAIRS, "share": None},
                        "by_stereotype": {},
                        "gaps": {"female": estimate(-3.75)},
                    }
                },
                "completions": {},
            },
        },
        findings=[],
    ).model_dump(mode="json"),
}
"""What the stages on control, privacy and stereotypes say where all of them apply."""


def make(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    params: CardParams = FILLED,
    labels: tuple[str, str] = ("bad", "good"),
    seed: int = 42,
    **changes: dict[str, Any],
) -> CardReport:
    """Write a run's reports into a folder, and make the card of them; `changes`: keys of single reports."""
    monkeypatch.chdir(folder)
    found = reports(list(labels), FINDINGS) | {"fetch_data": FetchDataReport(applies=False, datasets=[])}
    for stage, report in found.items():
        path = Path(f"reports/{stage}.json")
        report.write(path)
        write_json(path, read_json(path) | changes.get(stage, {}))
    given = {name: Path(f"reports/{name.removesuffix('_report')}.json") for name in CardPaths.model_fields}
    settings = load_params(REPOSITORY / "params.yaml")
    training: FinetuneParams = settings.value("finetune")
    task: TaskType = Task(TaskParams(type="text_classification", labels=list(labels)))
    return run(
        CardPaths(**{**given, "card": Path("models/card")}),
        params,
        task,
        seed=seed,
        training=training,
        max_length=128,
        confidence_level=0.95,
        attack_level=0.9,
        privacy=settings.value("prepare.privacy"),
    )


def page(name: str = "README.md") -> str:
    return (Path("models/card") / name).read_text(encoding="utf-8")


def test_every_figure_stands_at_its_place_in_the_file_of_that_hash(tmp_path, monkeypatch):
    report = make(tmp_path, monkeypatch, **MEASURED)
    listed = json.loads(page("card.json"))["facts"]
    assert listed == report.model_dump(mode="json")["facts"]
    assert len(listed) > 150
    for name, fact in listed.items():
        file = Path(fact["file"])
        assert sha256_file(file) == fact["sha256"], name
        assert resolve(read_json(file), fact["pointer"]) == fact["value"], name
    assert listed["evaluate.splits.test.metrics.accuracy.value"]["value"] == 0.875
    assert listed["evaluate.splits.test.metrics.accuracy.value"]["pointer"] == "/splits/test/metrics/accuracy/value"
    assert set(listed) >= {"prepare.rows.dropped.duplicate", "fetch_model.sha256", "ingest.sources.0.license"}


def test_every_number_of_the_pages_is_a_figure_a_setting_or_the_user_s(tmp_path, monkeypatch):
    report = make(tmp_path, monkeypatch, **MEASURED)
    known = " ".join([*(number(fact.value) for fact in report.facts.values()), *map(str, report.settings.values())])
    numbers = set(re.findall(r"\d[\d,.]*", known)) | {"1", "256"}  # reviews-1, macro f1, SHA-256
    body = page().split("\n---\n", 1)[1]
    for text in (body, page("DATA_SHEET.md")):
        text = re.sub(r"```.*?```|^\[\^.*$|`[^`]*`", "", text, flags=re.DOTALL | re.MULTILINE)
        shown = {found.rstrip(".,") for found in re.findall(r"\d[\d,.]*", text.replace("\\", ""))}
        assert shown - {found.rstrip(".,") for found in numbers} == set()
        assert len(shown) > 10


def test_a_change_of_a_report_changes_the_card(tmp_path, monkeypatch):
    make(tmp_path, monkeypatch)
    before = page()
    assert "0.8750 (0.8561 to 0.8924)" in before
    assert "| 0.7900 (0.7700 to 0.8100) |" in before  # the baseline beside it
    rows = {"rows_in": 900, "rows_kept": 843, "dropped": {"duplicate": 57}}
    make(tmp_path, monkeypatch, prepare={"rows": rows})
    assert "| duplicate | 57 |" in page()
    assert "| duplicate | 50 |" in before


def test_an_answer_that_learns_nothing_stands_beside_the_baseline(tmp_path, monkeypatch):
    make(tmp_path, monkeypatch)
    assert "copying" not in page()
    copied = {"copying the text": {"rows": 100, "metrics": {"accuracy": estimate(0.3125, 0.0625)}}}
    report = make(tmp_path, monkeypatch, baseline={"fixed": copied})
    assert "| copying the text [^baseline] |" in page() and "| 0.3125 (0.2500 to 0.3750) |" in page()
    assert report.facts["baseline.fixed.copying the text.metrics.accuracy.value"].value == 0.3125


def test_the_front_matter_is_what_the_hub_s_own_reader_takes(tmp_path, monkeypatch):
    from huggingface_hub import ModelCard, metadata_load

    make(tmp_path, monkeypatch)
    metadata = metadata_load(Path("models/card/README.md"))
    assert {key: metadata[key] for key in metadata if key != "model-index"} == {
        "language": ["en", "fr"],
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["sentiment", "tunewright"],
        "base_model": "somebody/base",
        "metrics": ["accuracy", "f1"],
    }
    card = ModelCard.load(Path("models/card/README.md"))
    assert card.data.model_name == "reviews-1"
    found = {result.metric_name: result for result in card.data.eval_results}
    assert set(found) == {"accuracy", "macro f1", "ece", "brier", "loss"}
    assert found["accuracy"].metric_value == ACCURACY["value"]
    assert (found["accuracy"].dataset_name, found["accuracy"].dataset_split) == ("reviews", "test")
    assert card.data.to_dict()["model-index"] == metadata["model-index"]


def test_what_is_not_known_is_left_out(tmp_path, monkeypatch):
    from huggingface_hub import metadata_load

    report = make(tmp_path, monkeypatch, CardParams(), fetch_model={"license": "Terms of Use, 2nd edition"})
    metadata = metadata_load(Path("models/card/README.md"))
    # The base model is a package, which is no id of the Hub; and without a name there is no model-index.
    assert set(metadata) == {"license", "license_name", "library_name", "pipeline_tag", "tags", "metrics"}
    assert (metadata["license"], metadata["license_name"]) == ("other", "terms-of-use-2nd-edition")
    text = page() + page("DATA_SHEET.md")
    for heading in ("Uses", "Contact", "Motivation", "Collection process", "Maintenance"):
        assert f"## {heading}\n" not in text
    assert "None" not in text.replace("“", "")
    assert "null" not in text
    assert {"card.intended_use", "card.language", "card.data.motivation"} <= set(report.left_out)
    assert not any(
        name.startswith(("fetch_model.model_revision", "evaluate.margin_over_base.")) for name in report.facts
    )


def test_a_base_model_of_the_hub_is_named(tmp_path, monkeypatch):
    from huggingface_hub import metadata_load

    make(tmp_path, monkeypatch, CardParams(), fetch_model={"model_name_or_path": "somebody/base-2"})
    assert metadata_load(Path("models/card/README.md"))["base_model"] == "somebody/base-2"


def test_data_sets_of_the_hub_are_named(tmp_path, monkeypatch):
    from huggingface_hub import metadata_load

    make(tmp_path, monkeypatch, fetch_data={"datasets": [{"dataset_name": "somebody/reviews"}]})
    assert metadata_load(Path("models/card/README.md"))["datasets"] == ["somebody/reviews"]


def test_words_of_users_and_data_are_no_markdown(tmp_path, monkeypatch):
    low, high = "<script>|x|", "[good](http://a.example) *or* not"
    make(tmp_path, monkeypatch, labels=(low, high))
    text = page()
    assert "Reviews \\*only\\*.\n\nNo \\<b\\>mail\\</b\\>." in text
    assert "\n1\\. Irony \\| sarcasm\n" in text
    assert "\\# For a test" in page("DATA_SHEET.md")
    assert "“\\<script\\>\\|x\\|”" in text
    assert "“\\[good\\](http://a.example) \\*or\\* not”" in text
    assert "PSI 0.15 \\<b\\>" in text
    header = next(line for line in text.splitlines() if line.startswith("| split"))
    assert len(re.findall(r"(?<!\\)\|", header)) == 6  # five columns


def test_personal_values_in_labels_are_masked(tmp_path, monkeypatch):
    make(tmp_path, monkeypatch, labels=("bad", "jane.doe@example.org"))
    assert "jane.doe" not in page().replace("\\", "") + page("DATA_SHEET.md").replace("\\", "")
    assert "EMAIL" in page()


def test_the_same_reports_give_the_same_bytes(tmp_path, monkeypatch):
    first = make(tmp_path, monkeypatch)
    before = sha256_tree(Path("models/card"))
    assert make(tmp_path, monkeypatch) == first
    assert sha256_tree(Path("models/card")) == before
    assert str(tmp_path) not in page() + page("DATA_SHEET.md") + page("card.json")


def test_no_group_means_not_assessed_and_groups_are_told(tmp_path, monkeypatch):
    make(tmp_path, monkeypatch)
    assert "## Fairness\n\nNot assessed" in page()
    measured = {"difference_in_proportions": 0.25, "low": 0.1, "high": 0.4}
    groups = {"A": {"rows": 60, "against_reference": None}, "B": {"rows": 30, "against_reference": measured}}
    make(tmp_path, monkeypatch, audit_data={"features": {"region": {"reference_group": "A", "groups": groups}}})
    assert "| region | A (reference) | 60 | – |" in page()
    assert "| region | B | 30 | 0.2500 (0.1000 to 0.4000) |" in page()


def test_what_the_audit_of_the_model_found_is_told(tmp_path, monkeypatch):
    finding = {"rule": "audit_model.flip_rate", "verdict": "warn", "found": "0.0625 of 32 rows", "expected": "0.05"}
    report = make(tmp_path, monkeypatch, audit_model={"findings": [finding]})
    assert "| warn | audit\\_model.flip\\_rate | 0.0625 of 32 rows | 0.05 |" in page()
    assert report.facts["audit_model.findings.0.found"].pointer == "/findings/0/found"


def test_a_mitigation_is_told_by_what_it_made_of_the_training_rows(tmp_path, monkeypatch):
    mended, _ = mitigate(tmp_path, planted.rows(100, gap=0.5), "reweigh")
    report = make(tmp_path, monkeypatch, mitigate=mended.model_dump(mode="json"))
    assert mended.before is not None
    groups = mended.before.groups
    (group,) = [name for name, found in groups.items() if found.against_reference]
    before = groups[group].against_reference
    assert before is not None and before.low is not None and before.high is not None
    was = f"{before.difference_in_proportions:.4f} ({before.low:.4f} to {before.high:.4f})"
    assert "Training rows were mended by reweigh, by text.gender. [^mitigate]" in page()
    row = next(line for line in page().splitlines() if line.startswith(f"| {group} | {was} | "))
    # After the weights, label and group are independent.
    place = f"mitigate.after.groups.{group}.against_reference"
    assert abs(report.facts[f"{place}.difference_in_proportions"].value) < 1e-9
    assert report.facts[f"{place}.low"].value < 0 < report.facts[f"{place}.high"].value
    assert number(report.facts[f"{place}.low"].value) in row
    assert report.facts["mitigate.method"].pointer == "/method"


def test_a_threshold_policy_is_told_by_test_without_and_with_it(tmp_path, monkeypatch):
    # test_threshold_policy.py has these rows: without it 5 of 8 men, 7 of 8 women and the one other are right.
    found, _ = policy(tmp_path)
    report = make(tmp_path, monkeypatch, threshold_policy=found.model_dump(mode="json"))
    text = page()
    head = "| on test [^threshold_policy] | without the policy | with it | change |\n|---|---|---|---|\n"
    assert f"{head}| accuracy | 0.7647 (0.5274 to 0.9044) | 1.0000 (0.8157 to 1.0000) | 0.2353 (" in text
    assert "| demographic parity difference | 0.5000 (0.1250 to 0.8750) | 0.0000 (" in text
    assert "| rate of favourable answers, men | 0.8750 (0.5291 to 0.9776) | 0.5000 (" in text
    assert "| rate of favourable answers, other, no rule | 1.0000 | 1.0000 | – |" in text
    assert "Each interval is of 0.9500; the change is paired." in text
    assert "by group of who, fitted on validation to keep demographic\\_parity" in text
    name = "threshold_policy.before.groups.women.selection_rate.value"
    assert report.facts[name].pointer == "/before/groups/women/selection_rate/value"
    for name, fact in report.facts.items():
        if name.startswith("threshold_policy."):
            assert fact.sha256 == sha256_file(Path("reports/threshold_policy.json"))
            assert resolve(read_json(Path(fact.file)), fact.pointer) == fact.value


def test_control_is_told_and_what_it_did_to_the_probabilities_of_test(tmp_path, monkeypatch):
    report = make(tmp_path, monkeypatch, **MEASURED)
    assert "a temperature of 1.7500, fitted on 70 rows of validation" in page()
    assert "| ece | 0.0625 (0.0312 to 0.0938) | 0.0312 (0.0156 to 0.0469) | -0.0312 (-0.0469 to -0.0156) |" in page()
    assert "highest probability is below 0.8125, by the rule max\\_risk 0.2000." in page()
    assert "| test | 96 | 72 | 0.7500 (0.7300 to 0.7700) | 0.1250 (0.1050 to 0.1450) |" in page()
    places = {
        "control.calibration.temperature": "/calibration/temperature",
        "control.calibration.metrics.ece.before.value": "/calibration/metrics/ece/before/value",
        "control.calibration.metrics.ece.after.high": "/calibration/metrics/ece/after/high",
        "control.abstention.splits.test.coverage.value": "/abstention/splits/test/coverage/value",
        "control.abstention.splits.test.risk.low": "/abstention/splits/test/risk/low",
    }
    assert {name: report.facts[name].pointer for name in places} == places


def test_a_rule_of_abstention_that_no_threshold_keeps_is_told(tmp_path, monkeypatch):
    silent = {**ANSWERED, "answered": 0, "errors": 0, "risk": None}
    abstention = {**MEASURED["control"]["abstention"], "abstain_below": None, "splits": {"test": silent}}
    make(tmp_path, monkeypatch, control={"abstention": abstention})
    assert "No threshold keeps the rule max\\_risk 0.2000: every row is answered." in page()
    assert "| test | 96 | 0 | 0.7500 (0.7300 to 0.7700) | – |" in page()


def test_the_explanation_is_told_with_what_tests_it(tmp_path, monkeypatch):
    report = make(tmp_path, monkeypatch)
    assert "| convergence delta, mean | 0.0012 |\n| convergence delta, largest | 0.0340 |" in page()
    assert "| deletion test: area between the curves (interval) | 0.2125 (0.1000 to 0.3000) |" in page()
    assert report.facts["explain.deletion.area.value"].pointer == "/deletion/area/value"
    assert report.facts["explain.convergence.max"].pointer == "/convergence/max"


def test_what_the_model_gives_away_is_told(tmp_path, monkeypatch):
    report = make(tmp_path, monkeypatch, **MEASURED)
    assert "| AUC (interval) | 0.6100 (0.5900 to 0.6300) |" in page()
    assert "| true positives where false ones are at most 0.0100 | 0.0300 (0.0100 to 0.0500) |" in page()
    assert "| 0 | 1.2500 | 1.2500 (1.2300 to 1.2700) |\n| 8 | 6.0000 | 6.5000 (5.5000 to 7.5000) |" in page()
    assert "By chance the mean is 1.4427 bits; the most that can be measured is 8.0000." in page()
    assert report.facts["memorization.attack.auc.low"].pointer == "/attack/auc/low"
    assert report.facts["memorization.attack.tpr.value"].pointer == "/attack/tpr/value"
    assert (
        report.facts["memorization.canaries.canaries.2.exposure.value"].pointer == "/canaries/canaries/2/exposure/value"
    )
    assert report.settings["memorization.confidence_level"] == 0.9

    make(
        tmp_path,
        monkeypatch,
        memorization={"canaries": {**MEASURED["memorization"]["canaries"], "canaries": [EXPOSED]}},
    )
    assert "a made-up secret" not in page()  # drawn for comparison, and none planted


def test_a_private_training_tells_its_epsilon(tmp_path, monkeypatch):
    report = make(tmp_path, monkeypatch, **MEASURED)
    assert "| ε | 7.9375 |\n| δ | 1e-06 |\n| accountant | prv |\n| noise multiplier | 0.8438 |" in page()
    assert report.facts["finetune.differential_privacy.epsilon"].pointer == "/differential_privacy/epsilon"
    assert report.facts["finetune.differential_privacy.delta"].value == 1e-06
    make(tmp_path, monkeypatch)
    assert "ε" not in page() and "differential privacy" not in page()


def test_the_seed_of_a_private_training_is_kept_back_and_that_is_said(tmp_path, monkeypatch):
    seed = 2718281828
    make(tmp_path, monkeypatch, seed=seed)
    told = "".join(map(page, ("README.md", "DATA_SHEET.md", "card.json")))
    assert told.count(str(seed)) == 2 and read_json(Path("models/card/card.json"))["kept_back"] == []
    assert f"| `seed` | {seed} |" in page()

    private = {"finetune": MEASURED["finetune"]}
    report = make(tmp_path, monkeypatch, seed=seed, **private)
    told = "".join(found.read_text() for found in sorted(Path("models/card").iterdir()))
    assert str(seed) not in told + report.model_dump_json()
    assert "seed" not in report.settings and report.settings["tokenize.max_length"] == 128
    assert read_json(Path("models/card/card.json"))["kept_back"] == report.kept_back == ["seed"]
    assert "| `seed` | kept back: the noise of the private training was drawn from it |" in page()
    before = sha256_tree(Path("models/card"))
    make(tmp_path, monkeypatch, seed=seed + 1, **private)
    assert sha256_tree(Path("models/card")) == before  # nothing in it hangs on the seed


def test_suites_are_told_tuned_beside_base(tmp_path, monkeypatch):
    report = make(tmp_path, monkeypatch, **MEASURED)
    gaps = "-1.2500 (-1.2700 to -1.2300) | -2.5000 (-2.5200 to -2.4800)"
    assert f"| winogender | tuned | 120 | 0.6562 (0.5938 to 0.7188) | {gaps} |" in page()
    assert "| winogender | base | 120 | – | -3.7500 (-3.7700 to -3.7300) | – |" in page()
    assert "| prompts, gender | tuned | men (reference) | 36 | 0.1250 (0.1050 to 0.1450) | – | – | – |" in page()
    written = "36 | 0.1250 (0.1050 to 0.1450) | 0.0625 (0.0425 to 0.0825) | 0.5000 (0.4800 to 0.5200) | – |"
    assert f"| prompts, gender | tuned | wo\\<b\\>men | {written}" in page()
    name = "suites.models.tuned.completions.prompts.gender.gaps.wo<b>men.hurtful.value"
    assert report.facts[name].pointer == "/models/tuned/completions/prompts/gender/gaps/wo<b>men/hurtful/value"


def test_a_stage_that_does_not_apply_is_not_told(tmp_path, monkeypatch):
    silent = {
        "mitigate": MitigateReport(applies=False),
        "control": ControlReport(applies=False, control={}, control_sha256="c" * 64),
        "explain": ExplainReport(
            applies=False,
            reason="explain.enabled is false",
            method="",
            n_steps=0,
            convergence=None,
            deletion=None,
            top_words={},
            errors=[],
            examples=[],
            findings=[],
        ),
        "suites": SuitesReport(applies=False, models={}, findings=[]),
        "memorization": MemorizationReport(applies=False, findings=[]),
        "threshold_policy": ThresholdPolicyReport(applies=False),
    }
    report = make(tmp_path, monkeypatch, **{stage: told.model_dump(mode="json") for stage, told in silent.items()})
    assert not [name for name in report.facts if name.split(".")[0] in silent]
    assert not [stage for stage in silent if f"[^{stage}]" in page()]
    assert "## Control" not in page() and "## Explanation" not in page()


def test_a_closed_gate_is_told_and_every_rule_that_did_not_pass(tmp_path, monkeypatch):
    make(tmp_path, monkeypatch, verdict={"open": False})
    assert "The gate to export is closed" in page()
    assert "| warn | drift.psi\\_warn |" in page()
    assert "validate: rows" not in page()  # passed, and of the data


def test_a_wrong_key_or_value_of_the_section_is_refused():
    for wrong in ({"language": ["English"]}, {"base_model": "no id"}, {"contact": ""}, {"data": {"owner": "me"}}):
        with pytest.raises(ValidationError):
            CardParams.model_validate(wrong)


def test_the_cost_is_joined_into_a_copy_and_the_cached_card_stays(tmp_path, monkeypatch):
    make(tmp_path, monkeypatch)
    (tmp_path / "params.yaml").write_bytes((REPOSITORY / "params.yaml").read_bytes())
    Path("reports/report.html").write_text("<main><!-- cost of compute --></main>")
    assert joined(None) == page()  # no run is known
    assert COST_PLACE in page()
    used = {"wall_seconds": 3600.0, "cpu_seconds": 7200.0, "memory_mb": 8000.0}
    stages = [
        {"stage": "finetune", "state": "Unchanged", "usage": used},
        {"stage": "export", "state": "Restored"},
    ]
    write_json(Path("reports/run.json"), {"stages": stages, "commit": None, "ended": "2026-01-01"})
    before = sha256_tree(Path("models/card"))
    text = joined(None)
    # 2 core hours of 4 W and 8 GB of 0.375 W for an hour: 11 Wh, and 475 g a kWh.
    assert "| electricity | 0.011 kWh |" in text
    assert "| greenhouse gases | 5.22 g CO₂e |" in text
    assert "Not known, and not in it: export" in text
    assert COST_PLACE not in text

    told = joined(Path("published"))
    assert told == "published: DATA_SHEET.md, README.md, card.json, cost.json, report.html"
    assert Path("published/README.md").read_text() == text
    assert "<td>0.011 kWh</td>" in Path("published/report.html").read_text()
    assert read_json(Path("published/cost.json"))["model"]["cpu_hours"] == 2.0
    assert sha256_tree(Path("models/card")) == before
    joined(Path("published"))  # over its own
    Path("other").mkdir()
    Path("other/notes.txt").touch()
    with pytest.raises(UserError, match=r"holds notes\.txt"):
        joined(Path("other"))


def test_without_a_card_there_is_nothing_to_show(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_bytes((REPOSITORY / "params.yaml").read_bytes())
    with pytest.raises(UserError, match="`tunewright run` makes it"):
        joined(None)


def test_pointers_escape_what_json_pointers_must():
    document = {"a/b": {"~x": [1, {"": 2}]}}
    assert pointer("a/b", "~x", 1, "") == "/a~1b/~0x/1/"
    assert resolve(document, "/a~1b/~0x/1/") == 2
    assert resolve(document, pointer("a/b", "~x", 0)) == 1


def test_markdown_by_hand():
    assert escape("- a_b *c* `d` | e\n\tf\\") == "\\- a\\_b \\*c\\* \\`d\\` \\| e f\\\\"
    assert escape("12) x & y") == "12\\) x \\& y"
    assert paragraphs("one\ntwo\n\n# three") == "one two\n\n\\# three"
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |"
    assert table(["a"], []) == ""


def test_numbers_by_hand():
    shown = [number(value) for value in (True, 12345, 0.0, 0.875, 1e-4, -0.25)]
    assert shown == ["yes", "12,345", "0.0000", "0.8750", "0.0001", "-0.2500"]


def test_a_job_without_a_word_of_the_hub_s_has_no_model_index(tmp_path, monkeypatch):
    from tunewright.model_card import loading

    assert loading(SimpleNamespace(pipeline_tag="")) == ""
    written = loading(seq2seq_lm.Task(seq2seq_lm.TaskParams(type="seq2seq_lm")))
    assert "AutoModelForSeq2SeqLM" in written
