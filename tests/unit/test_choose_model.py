"""choose_model: which candidate is taken, and why the others are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from stages.choose_model import Candidate, ChooseModelParams, ChooseModelPaths, ChooseModelReport, check, run
from tunewright.errors import UserError
from tunewright.files import read_json, write_json
from tunewright.task_types.text_classification import Task, TaskParams

TASK = Task(TaskParams(type="text_classification", labels=["no", "yes"]))
SMALL = {"hidden_size": 100, "num_hidden_layers": 2, "vocab_size": 1000, "max_length": 512}


class LanguageModel(Task):
    architectures = ("decoder", "encoder_decoder")
    watched_metrics = ()


def candidate(name: str, parameters: int, **more: Any) -> Candidate:
    fields: dict[str, Any] = {"kinds": ["encoder"], **SMALL, "license": "mit", **more}
    return Candidate(model_name_or_path=f"package:{name}/model", parameters=parameters, **fields)


def choose(
    folder: Path,
    candidates: list[Candidate],
    task: Task = TASK,
    rows: int = 1000,
    name: str = "auto",
    max_memory_gb: float = 10.0,
    language: str | None = None,
    allowed_licenses: list[str] | None = None,
    **more: Any,
) -> ChooseModelReport:
    write_json(folder / "ingest.json", {"rows": {"rows_kept": rows}})
    settings: dict[str, Any] = {"finetuning_type": "full", "optim": "adamw_torch", "batch_size": 10, "max_length": 100}
    return run(
        ChooseModelPaths(ingest_report=folder / "ingest.json", model_choice=folder / "choice.json"),
        ChooseModelParams(
            max_memory_gb=max_memory_gb, max_training_petaflop=1.0, language=language, candidates=candidates
        ),
        task,
        name,
        None,
        "apache-2.0",
        **{**settings, "epochs": 1.0, "allowed_licenses": allowed_licenses, **more},
    )


def reasons(report: ChooseModelReport) -> dict[str, list[str]]:
    return {found.model_name_or_path: found.refused for found in report.candidates}


def test_a_model_that_params_name_is_handed_on(tmp_path):
    report = choose(tmp_path, [candidate("big", 10**9)], name="package:mine/model")
    assert (report.applies, report.model_name_or_path, report.candidates) == (False, "package:mine/model", [])
    assert read_json(tmp_path / "choice.json") == {
        "license": "apache-2.0",
        "model_name_or_path": "package:mine/model",
        "model_revision": None,
    }


def test_the_largest_that_will_do_is_taken_and_each_reason_is_told(tmp_path):
    candidates = [
        candidate("small", 10**7),
        candidate("middle", 10**8),
        candidate("huge", 10**9),
        candidate("writer", 2 * 10**8, kinds=["decoder"]),
        candidate("short", 2 * 10**8, max_length=64),
        candidate("french", 2 * 10**8, languages=["fr"]),
    ]
    report = choose(tmp_path, candidates, language="en")
    assert report.applies
    assert report.model_name_or_path == "package:middle/model"
    assert report.reason == "the largest of 2 candidates that will do (100,000,000 parameters)"
    # 4 bytes each for the weight, its gradient and two moments, and 0.7 GB of libraries; activations are few:
    # 10 · 100 tokens · 2 layers · 100 · 20 floats = 16 MB.
    # 6 operations for each of 10^9 weights and each of 1000 rows of at most 100 tokens: 0.6 petaFLOP.
    assert reasons(report) == {
        "package:small/model": [],
        "package:middle/model": [],
        "package:huge/model": ["too large: needs about 16.7 of 10 GB"],
        "package:writer/model": ["wrong kind: decoder, and text_classification takes encoder"],
        "package:short/model": ["too short: takes 64 tokens, and tokenize.max_length is 100"],
        "package:french/model": ["wrong language: fr, not en"],
    }
    assert [found.memory_gb for found in report.candidates[:3]] == [0.88, 2.32, 16.72]
    assert read_json(tmp_path / "choice.json")["license"] == "mit"


def test_more_rows_want_a_smaller_model_and_leave_the_choice_alone_where_it_stands(tmp_path):
    candidates = [candidate("small", 10**7), candidate("middle", 10**8)]
    assert choose(tmp_path, candidates, rows=10_000).model_name_or_path == "package:middle/model"
    before = (tmp_path / "choice.json").read_bytes()
    choose(tmp_path, candidates, rows=16_000)
    assert (tmp_path / "choice.json").read_bytes() == before
    report = choose(tmp_path, candidates, rows=17_000)  # 17,000 · 100 tokens · 6 · 10^8 operations
    assert report.model_name_or_path == "package:small/model"
    assert reasons(report)["package:middle/model"] == [
        "too slow: up to 1 petaFLOP for 17,000 rows, and max_training_petaflop is 1"
    ]


def test_the_task_s_own_order_of_kinds_goes_before_size(tmp_path):
    candidates = [
        candidate("pair", 2 * 10**8, kinds=["encoder_decoder"]),
        candidate("writer", 10**8, kinds=["decoder"]),
    ]
    task = LanguageModel(TASK.params)
    assert choose(tmp_path, candidates, task).model_name_or_path == "package:writer/model"


def test_a_licence_that_is_not_allowed_is_not_chosen(tmp_path):
    candidates = [
        candidate("small", 10**7),  # mit
        candidate("middle", 5 * 10**7, license=None),
        candidate("large", 10**8, license="cc-by-nc-4.0"),
    ]
    assert choose(tmp_path, candidates).model_name_or_path == "package:large/model"
    report = choose(tmp_path, candidates, allowed_licenses=["MIT", "Apache-2.0"])
    assert report.model_name_or_path == "package:middle/model"  # of which the model's own files may name one
    assert reasons(report) == {
        "package:small/model": [],
        "package:middle/model": [],
        "package:large/model": ["licence: cc-by-nc-4.0, and gate_data.allowed_licenses has MIT, Apache-2.0"],
    }
    with pytest.raises(UserError, match=r"none of the candidates will do\.\n  package:large/model: licence: cc-by-nc"):
        choose(tmp_path, candidates[2:], allowed_licenses=["MIT"])


def test_logits_over_a_vocabulary_count(tmp_path):
    wide = candidate("wide", 10**7, kinds=["encoder", "decoder"], vocab_size=1_000_000)
    (classifier,) = choose(tmp_path, [wide]).candidates
    (writer,) = choose(tmp_path, [wide], LanguageModel(TASK.params)).candidates
    assert round(writer.memory_gb - classifier.memory_gb, 2) == 8.0  # 1000 tokens · 10^6 · 2 · 4 bytes


def test_without_candidates_there_is_nothing_to_choose(tmp_path):
    with pytest.raises(UserError, match=r"found none, and fetch_model\.model_name_or_path is auto"):
        choose(tmp_path, [])
    params = ChooseModelParams(max_memory_gb=1.0, max_training_petaflop=1.0, language=None, candidates=[])
    assert len(check(params, "auto")) == 1
    assert check(params, "./models/mine") == []


def test_an_adapter_fits_where_all_weights_do_not(tmp_path):
    big = candidate("big", 10**9)
    with pytest.raises(UserError, match=r"none of the candidates.*\n  package:big/model: too large.*\nAdd one to"):
        choose(tmp_path, [big])
    assert choose(tmp_path, [big], finetuning_type="lora").reason == "the only one of 1 candidates that will do"


def test_a_hub_id_is_pinned_and_a_candidate_is_a_model():
    with pytest.raises(ValidationError, match="40-digit commit of a/b"):
        Candidate(model_name_or_path="a/b", kinds=["encoder"], parameters=1, **SMALL)
    with pytest.raises(ValidationError, match="a model's name, not auto"):
        Candidate(model_name_or_path="auto", kinds=["encoder"], parameters=1, **SMALL)
