"""The model card and the data sheet of a run whose every figure is known: they say nothing that no report says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from flows.card import card as joined
from stages.card import CardParams, CardPaths, CardReport, DataParams, run
from stages.fetch_data import FetchDataReport
from stages.finetune import FinetuneParams
from tests.unit.test_report import ACCURACY, reports
from tunewright.errors import UserError
from tunewright.facts import pointer, resolve
from tunewright.files import read_json, sha256_file, sha256_tree, write_json
from tunewright.markdown import escape, paragraphs, table
from tunewright.model_card import COST_PLACE
from tunewright.params import load_params
from tunewright.task import TaskType
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


def make(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    params: CardParams = FILLED,
    labels: tuple[str, str] = ("bad", "good"),
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
        seed=42,
        training=training,
        max_length=128,
        confidence_level=0.95,
        privacy=settings.value("prepare.privacy"),
    )


def page(name: str = "README.md") -> str:
    return (Path("models/card") / name).read_text(encoding="utf-8")


def test_every_figure_stands_at_its_place_in_the_file_of_that_hash(tmp_path, monkeypatch):
    report = make(tmp_path, monkeypatch)
    listed = json.loads(page("card.json"))["facts"]
    assert listed == report.model_dump(mode="json")["facts"]
    assert len(listed) > 60
    for name, fact in listed.items():
        file = Path(fact["file"])
        assert sha256_file(file) == fact["sha256"], name
        assert resolve(read_json(file), fact["pointer"]) == fact["value"], name
    assert listed["evaluate.splits.test.metrics.accuracy.value"]["value"] == 0.875
    assert listed["evaluate.splits.test.metrics.accuracy.value"]["pointer"] == "/splits/test/metrics/accuracy/value"
    assert set(listed) >= {"prepare.rows.dropped.duplicate", "fetch_model.sha256", "ingest.sources.0.license"}


def test_every_number_of_the_pages_is_a_figure_a_setting_or_the_user_s(tmp_path, monkeypatch):
    report = make(tmp_path, monkeypatch)
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
    written = loading(SimpleNamespace(pipeline_tag="text-generation", architectures=("encoder_decoder",)))
    assert "AutoModelForSeq2SeqLM" in written
