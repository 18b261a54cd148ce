"""Rows with a target, conversations, numbers and a label for each word: audit_data, check_leaks, gate_data, and all
data stages one after the other."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages import audit_data, check_leaks, drift, gate_data, ingest, prepare, validate
from stages.audit_data import AuditDataParams, AuditDataPaths
from stages.check_leaks import CheckLeaksParams, CheckLeaksPaths
from stages.mitigate import MitigateReport
from tests.kinds import Tagged, chat, pairs, score, tagged, talk
from tests.passing import let_through
from tests.unit import test_audit_data, test_check_leaks, test_gate_data
from tests.unit.test_check_leaks import PRIVACY
from tests.unit.test_prepare import SPLITS
from tunewright.errors import GateClosed, UserError
from tunewright.files import read_json
from tunewright.gates import Finding
from tunewright.params import load_params
from tunewright.task import TaskType

EACH_KIND = pytest.mark.parametrize(
    "task", [pairs(), chat(), score(), tagged()], ids=["pairs", "chat", "score", "tags"]
)


def prepared(folder: Path, task: TaskType, texts: dict[str, list[str]]) -> Path:
    """Split → texts; each row has what the task's rows have."""
    for split in SPLITS:
        rows = texts.get(split, [])
        table: dict[str, Any] = {
            "row_id": pa.array([f"{split}-r{at}" for at in range(len(rows))], pa.string()),
            "source": pa.array(["s"] * len(rows), pa.string()),
            "line": pa.array(range(len(rows)), pa.int64()),
            "text": pa.array(rows, pa.string()),
        }
        if "target" in task.columns:
            table["target"] = pa.array(["t"] * len(rows), pa.string())
        if task.label_kind == "number":
            table["label"] = pa.array([1.0] * len(rows), pa.float64())
        if task.label_kind == "sequence":
            table["label"] = pa.array([["O"] * len(text.split(" ")) for text in rows], pa.list_(pa.string()))
        (folder / "prepared").mkdir(exist_ok=True)
        pq.write_table(pa.table(table), folder / f"prepared/{split}.parquet")
    return folder / "prepared"


@EACH_KIND
def test_no_bias_is_told_where_no_label_names_a_row(tmp_path: Path, task: TaskType) -> None:
    paths = AuditDataPaths(prepared=prepared(tmp_path, task, {"train": ["a b"] * 3}), lexicon=test_audit_data.LEXICON)
    unnamed = test_audit_data.BASE | {"sensitive_features": [], "favourable_label": None}
    report = audit_data.run(paths, AuditDataParams.model_validate(unnamed), task, privacy=None)
    assert (report.label_counts, report.label_shares, report.features) == ({}, {}, {})
    assert [(found.rule, found.verdict) for found in report.findings] == [
        ("audit_data.sensitive_features", "not_assessed")
    ]
    named = AuditDataParams.model_validate(unnamed | {"favourable_label": "O"})
    (fault,) = audit_data.check(named, task)
    assert fault.startswith(f"audit_data.favourable_label: found 'O'; no label names a row of {task.params.type}")
    with pytest.raises(UserError, match="Expected null, and no sensitive_features"):
        audit_data.run(paths, named, task, privacy=None)


@EACH_KIND
def test_contamination_is_looked_for_in_rows_of_every_kind(tmp_path: Path, task: TaskType) -> None:
    texts = {"train": ["one two three four five"] * 20, "test": ["zero one two three four", "six seven eight"]}
    params = CheckLeaksParams.model_validate(test_check_leaks.BASE | {"accepted_features": ["line", "text.digits"]})
    paths = CheckLeaksPaths(prepared=prepared(tmp_path, task, texts))
    report = check_leaks.run(paths, params, task, 7, PRIVACY)
    assert report.contamination["test"].contaminated == 1
    assert (report.label_names, report.words, report.metadata) == ([], [], None)
    assert [(found.rule, found.verdict) for found in report.findings] == [
        ("check_leaks.contamination_warn", "insufficient"),
        ("check_leaks.contamination_warn", "warn"),
        *([] if task.label_kind == "none" else [("check_leaks.metadata_warn", "not_assessed")]),
    ]
    unknown = CheckLeaksParams.model_validate(test_check_leaks.BASE | {"accepted_features": ["author"]})
    with pytest.raises(UserError, match=r"found author; the features of .* are source, line, text.characters, text.wo"):
        check_leaks.run(paths, unknown, task, 7, PRIVACY)


def test_the_gate_asks_for_rows_in_each_split_where_no_label_names_one(tmp_path: Path) -> None:
    split = {"rows": 1, "label_counts": {}, "label_shares": {}}
    findings = test_gate_data.judge(tmp_path, split=split).findings
    assert Finding(rule="prepare.split", verdict="pass", found="test: 1 row", expected="at least one row") in findings
    with pytest.raises(GateClosed, match=r"prepare\.split: found test: 0 rows; expected at least one row"):
        test_gate_data.judge(tmp_path, split=split | {"rows": 0})


def sentence(number: int) -> list[str]:
    """Six words, of each number others."""
    chosen = random.Random(number)
    return ["".join(chosen.choices("abcdefghijklmnopqrstuvwxyz", k=7)) for _ in range(5)] + [f"n{number}"]


def record(kind: str, number: int) -> dict[str, Any]:
    """A raw record of each job."""
    words = sentence(number)
    text = " ".join(words)
    return {
        "pairs": {"en": text, "fr": " ".join(reversed(words))},
        "chat": {"messages": talk(f"What is {text}?", f"It is {words[0]}.", "Thanks.")},
        "score": {"en": text, "stars": number % 5 + 0.5},
        "tagged": {"words": words, "tags": ["B-LOC", *["O"] * 5]},
    }[kind]


COLUMNS = {
    "pairs": {"text_column": "en", "target_column": "fr"},
    "chat": {"messages_column": "messages"},
    "score": {"text_column": "en", "label_column": "stars"},
    "tagged": {"text_column": "words", "label_column": "tags"},
}
TASKS: dict[str, Callable[[], TaskType]] = {"pairs": pairs, "chat": chat, "score": score, "tagged": tagged}
BROKEN: dict[str, dict[str, Any]] = {
    "pairs": {"en": "a", "fr": ["b"]},
    "chat": {"messages": [{"role": "tool", "content": "x"}]},
    "score": {"en": "a", "stars": "many"},
    "tagged": {"words": ["a", "b"], "tags": ["O"]},
}


@pytest.mark.parametrize("kind", TASKS)
def test_a_job_s_rows_go_through_all_data_stages(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """120 rows, one of them twice, one with an address, and one record that can't be read."""
    task = TASKS[kind]()
    defaults = load_params()
    monkeypatch.chdir(tmp_path)
    rows = [record(kind, number) for number in range(118)] + [record(kind, 0), record(kind, 500), BROKEN[kind]]
    personal = json.dumps(rows[119]).replace("n500", "jo@example.com")
    lines = [json.dumps(row) for row in rows[:119]] + [personal, json.dumps(rows[120])]
    raw = tmp_path / "raw/rows.jsonl"
    raw.parent.mkdir()
    raw.write_text("".join(f"{line}\n" for line in lines))
    reports = {}

    source = {"name": "s", "path": "rows.jsonl", "format": "jsonl", "license": "MIT"} | COLUMNS[kind]
    params = {"max_rejected_fraction": 0.1, "control_characters": "reject", "max_text_characters": 1000}
    paths = {name: tmp_path / name for name in ("raw", "hub_data", "prepared", "data_docs", "drift_plots")}
    paths |= {name: tmp_path / f"{name}.parquet" for name in ("ingested", "quarantine")}
    paths |= {"training_weights": tmp_path / "training_weights.parquet", "lexicon": test_audit_data.LEXICON}
    paths |= {"drift_reference": tmp_path / "accepted.json", "data_passed": tmp_path / "data.passed"}
    (tmp_path / "accepted.json").write_text('{"accepted": null}')

    def kept(**report: Any) -> None:
        for stage, found in report.items():
            found.write(tmp_path / f"{stage}.json")
            reports[stage] = read_json(tmp_path / f"{stage}.json")

    def located(stage: Any, name: str) -> Any:
        fields = getattr(stage, name).model_fields
        return getattr(stage, name)(
            **{field: paths.get(field, tmp_path / f"{field.removesuffix('_report')}.json") for field in fields}
        )

    privacy = defaults.value("prepare.privacy")
    ingest_params = ingest.IngestParams.model_validate(params | {"sources": [source]})
    assert ingest.check(located(ingest, "IngestPaths"), ingest_params, task) == []
    kept(ingest=ingest.run(located(ingest, "IngestPaths"), ingest_params, task))
    contract = defaults.value("validate").model_copy(update={"min_rows": 100})
    kept(validate=validate.run(located(validate, "ValidatePaths"), contract, task))
    split = prepare.SplitParams(train=0.6, validation=0.2, test=0.2)
    chosen = defaults.value("prepare").model_copy(update={"split": split})
    kept(prepare=prepare.run(located(prepare, "PreparePaths"), chosen, task))
    unnamed = defaults.value("audit_data").model_copy(update={"favourable_label": None, "sensitive_features": []})
    kept(audit_data=audit_data.run(located(audit_data, "AuditDataPaths"), unnamed, task, privacy))
    kept(mitigate=MitigateReport(applies=False))
    let_through(paths["prepared"], paths["data_passed"])
    kept(drift=drift.run(located(drift, "DriftPaths"), defaults.value("drift"), privacy))
    leaks = defaults.value("check_leaks")
    kept(check_leaks=check_leaks.run(located(check_leaks, "CheckLeaksPaths"), leaks, task, 0, privacy))
    base = {"applies": True, "model_name_or_path": "package:base/model", "license": "apache-2.0"}
    (tmp_path / "fetch_model.json").write_text(json.dumps(base))
    opened = gate_data.run(located(gate_data, "GateDataPaths"), defaults.value("gate_data"))

    assert reports["ingest"]["rows"]["rows_in"] == 121
    assert reports["ingest"]["rows"]["rows_kept"] == reports["prepare"]["rows"]["rows_in"] == 120
    assert reports["validate"]["success"]
    account = reports["prepare"]["rows"]
    assert account["dropped"]["duplicate"] == 1
    assert account["rows_kept"] + sum(account["dropped"].values()) == 120
    assert reports["prepare"]["privacy"]["kinds"]["email"]["rows"] == 1
    verdicts = {found.verdict for found in opened.findings}
    assert verdicts <= {"pass", "warn", "not_assessed", "insufficient"}
    assert (tmp_path / "data.passed").is_file()
    names = ["row_id", "source", "line", *task.columns]
    total = 0
    for name in SPLITS:
        table = pq.read_table(tmp_path / f"prepared/{name}.parquet")
        assert table.column_names == names
        total += len(table)
        for row in table.to_pylist():
            assert "jo@example.com" not in json.dumps(row)
            if isinstance(task, Tagged):
                assert len(row["label"]) == len(row["text"].split(" "))
    assert total == account["rows_kept"]
    for report in tmp_path.glob("*.json"):
        assert "jo@example.com" not in report.read_text()
