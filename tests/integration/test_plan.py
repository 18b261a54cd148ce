"""`tunewright plan` on a project in which nothing has run: every section, no stage, and nothing left behind."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from flows import plan as planning
from flows import record
from flows.cli import app
from flows.plan_page import show
from tests.conftest import Project
from tunewright.files import read_json, sha256_tree, write_json
from tunewright.params import load_params
from tunewright.stage import run_file

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def inside(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The project, as the working folder, with the environment as it was."""
    monkeypatch.chdir(project.root)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    return project


def shown(plan: dict[str, Any]) -> str:
    console = Console(record=True, width=200)
    show(console, plan)
    return console.export_text()


def test_a_fresh_project_is_planned_and_no_stage_starts(inside):
    before = {folder: sha256_tree(inside.root / folder) for folder in ("data", "models")}
    done = CliRunner().invoke(app, ["plan", "--steps", "2"])
    assert done.exit_code == 0, done.output

    for title in ("Stages", "Base model", "Data", "Training", "Memory", "Disk", "Time"):
        assert f"\n{title}" in done.output
    assert "by 2 real steps after a warm-up" in done.output
    assert inside.ran() == set()
    assert inside.run("git", "status", "--porcelain", "--untracked-files=all").stdout == ""
    assert {folder: sha256_tree(inside.root / folder) for folder in before} == before

    plan = read_json(inside.root / ".tunewright/plan.json")
    assert all(stage["why"] == ["it has not run yet"] for stage in plan["stages"])
    rows = plan["data"]["rows"]
    assert plan["training"]["steps"] == -(-rows["train"] // 16)
    assert plan["training"]["trainable_parameters"] == plan["training"]["parameters"]
    assert plan["memory"]["optimizer_states"] == 2 * plan["memory"]["weights"]
    assert plan["disk"]["checkpoints"] == 4 * 3 * plan["memory"]["weights"]  # two kept, the best, and one in the making
    assert plan["time"]["total"] > 0
    (truncation,) = plan["warnings"]
    assert truncation.startswith("truncation: ")

    # What was planned from the raw file is what the stages find.
    for stage in ("fetch_data", "ingest", "prepare"):
        inside.stage(stage)
    prepared = read_json(inside.root / "reports/prepare.json")
    assert rows == {"ingested": prepared["rows"]["rows_in"], **_sizes(inside)}


def _sizes(project: Project) -> dict[str, int]:
    import pyarrow.parquet as pq

    return {
        split: pq.read_metadata(project.root / f"data/prepared/{split}.parquet").num_rows
        for split in ("train", "validation", "test")
    }


def test_a_part_of_a_large_file_is_read_and_counted_up(inside, monkeypatch):
    done = CliRunner().invoke(app, ["plan", "--no-calibrate", "--json"])
    whole = json.loads(done.output)
    assert whole == read_json(planning.PLAN_FILE)
    monkeypatch.setattr(planning, "SAMPLE", 100)
    part = planning.plan(False, 1)
    assert "every record" in whole["data"]["read_from"]
    assert "every 4th of" in part["data"]["read_from"]
    assert part["data"]["rows"]["train"] == pytest.approx(whole["data"]["rows"]["train"], rel=0.1)
    assert part["data"]["tokens_per_epoch"] == pytest.approx(whole["data"]["tokens_per_epoch"], rel=0.2)
    assert part["training"]["parameters"] == whole["training"]["parameters"]
    assert not part["time"]["calibrated"]


def test_a_model_that_is_not_here_leaves_the_rest_to_be_told(inside):
    inside.edit(
        lambda params: params["fetch_model"].update(model_name_or_path="organisation/name", model_revision=COMMIT)
    )
    plan = planning.plan(None, 1)
    assert "training" not in plan
    assert plan["data"]["rows"]["train"] > 400
    text = shown(plan)
    assert "organisation/name is not here yet: `dvc repro fetch_model` fetches it" in text
    assert "Data" in text
    assert "Memory" not in text


def test_a_model_from_scratch_is_made_of_these_rows_to_be_counted(inside):
    def change(params: Any) -> None:
        params["fetch_model"].update(model_name_or_path=None, license=None)
        config = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        params["init_model"]["from_scratch"] = {
            "architecture": "bert", "config": config, "tokenizer": "wordpiece", "vocab_size": 300
        }  # fmt: skip

    inside.edit(change)
    plan = planning.plan(False, 1)
    assert plan["base_model"]["read_from"] == "made now of these rows, as `init_model` makes it"
    # Embeddings of tokens, positions and types with their norm; a layer; the pooler; two labels.
    layer = 4 * (16 * 16 + 16) + (16 * 32 + 32) + (32 * 16 + 16) + 2 * 2 * 16
    assert plan["training"]["parameters"] == (300 + 512 + 2) * 16 + 2 * 16 + layer + (16 * 16 + 16) + 34
    assert not (inside.root / "models/base").exists()


def test_a_choice_is_told_with_its_reason_and_what_is_short_with_the_key_to_lower(inside, monkeypatch):
    def change(params: Any) -> None:
        params["fetch_model"]["model_name_or_path"] = "auto"
        tiny = params["choose_model"]["candidates"][0]
        params["choose_model"]["candidates"] = [
            {**tiny, "model_name_or_path": "./models/tiny", "parameters": 70_000},
            {**tiny, "model_name_or_path": "./models/other", "kinds": ["decoder"]},
        ]
        params["tokenize"]["max_length"] = 16

    monkeypatch.setattr(planning, "free_memory", lambda: 10**8)
    inside.edit(change)
    plan = planning.plan(None, 1)
    assert plan["base_model"]["model_name_or_path"] == "./models/tiny"
    text = shown(plan)
    assert "the only one of 2 candidates that will do" in text
    assert "./models/other: wrong kind: decoder, and text_classification takes encoder" in text
    assert plan["training"]["parameters"] < 200_000
    assert not plan["time"]["calibrated"]  # no step is tried that may not fit
    memory, truncation = plan["warnings"]
    assert memory.startswith(
        "memory: about 0.7 GB are needed, 0.1 GB are free. Most is for evaluation: lower finetune.per"
    )
    assert truncation.startswith("truncation: ")
    assert "Raise tokenize.max_length" in truncation


@pytest.mark.heavy
@pytest.mark.parametrize("way", ["full", "head", "private"])
def test_the_estimated_peak_is_near_what_real_steps_take(tmp_path, way):
    project = Project.copy(tmp_path)
    chosen: dict[str, Any] = {"finetuning_type": way}
    if way == "private":  # 2 rows of 23 million gradients each
        private = {"noise_multiplier": 1.0, "target_delta": 1e-6, "max_grad_norm": 1.0}
        chosen = {"max_grad_norm": 0.0, "per_device_train_batch_size": 2, "differential_privacy": private}
    project.edit(lambda params: params["finetune"].update(chosen))
    plan = json.loads(project.tunewright("plan", "--json", "--steps", "1").stdout)
    assert plan["training"]["parameters"] == 22_713_986
    memory = plan["memory"]
    if memory["peak"] >= planning.NEARLY_ALL * memory["free"]:
        assert not plan["time"]["calibrated"]
        pytest.skip(
            f"{memory['peak'] / 1e9:.1f} GB are needed, {memory['free'] / 1e9:.1f} GB are free: no step is tried"
        )
    assert 1 / 1.5 < memory["peak"] / plan["time"]["peak_memory"] < 1.5


def test_a_run_s_record_holds_the_plan_against_what_it_took(inside):
    stages = [
        {"stage": "ingest", "state": "Unchanged", "seconds": 0.0},
        {"stage": "finetune", "state": "Ran", "seconds": 61.0},
    ]
    training = {"steps": 7, "tokens": 3000, "seconds": 50.0, "tokens_per_second": 60.0}
    story = {"process_seconds": 60.0, "peak_memory_mb": 1000, "training": training}
    write_json(run_file("finetune"), story)
    record.write(stages, 70.0)
    told = record.read()
    assert told["commit"] == inside.run("git", "rev-parse", "HEAD").stdout.strip()
    assert told["stages"][1] == {**stages[1], "process_seconds": 60.0, "peak_memory_mb": 1000}
    assert told["finetune"]["estimated"] is None
    assert (record.against_plan(told) or "").startswith("60 s, 1.05 GB, 60 tokens/s; `tunewright plan` before")

    plan = {
        "params_sha256": planning.fingerprint(load_params()),
        "time": {"total": 55.0, "training": 40.0, "evaluation": 5.0, "tokens_per_second": 75.0, "how": "by 4 steps"},
        "memory": {"peak": 900_000_000},
        "training": {"steps": 7},
    }
    write_json(planning.PLAN_FILE, plan)
    record.write(stages, 70.0)
    told = record.read()
    assert told["finetune"]["estimated"]["training_seconds"] == 45.0
    assert record.against_plan(told) == "60 s, 1.05 GB, 60 tokens/s; planned 55 s, 900 MB, 75 tokens/s"

    # A run that trains nothing keeps what was seen; a plan of other params is not compared.
    record.write(stages[:1], 1.0)
    assert record.read()["finetune"] == told["finetune"]
    inside.edit(lambda params: params["finetune"].update(per_device_train_batch_size=8))
    record.write(stages, 70.0)
    assert record.read()["finetune"]["estimated"] is None
