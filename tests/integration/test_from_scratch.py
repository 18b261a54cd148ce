"""Two runs chained by DVC: what the first has exported is the base model of the second, by real git and DVC."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.conftest import REPOSITORY, Project, reviews
from tunewright.files import read_json, sha256_file, sha256_tree

EXPORT = "../pretrain_encoder/models/export"
SMALL = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64},
    "bart": {
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
    },
}


def recipe(folder: Path, name: str) -> Project:
    """A project that holds a recipe's params, with fewer rows and a model of few weights."""
    project = Project.copy(folder)
    project.root = project.root.rename(folder / name)
    shutil.copyfile(REPOSITORY / f"recipes/{name}.yaml", project.root / "params.yaml")
    (project.root / "data/raw/movie_reviews/movie_reviews.tsv").write_bytes(reviews(700))
    project.edit(lambda params: _small(params, name))
    return project.commit()


def _small(params: Any, name: str) -> None:
    params["validate"]["min_rows"] = 100
    params["gate_data"]["max_label_share_gap"] = 0.5
    params["tokenize"]["max_length"] = 32
    params["finetune"].update(max_steps=8, eval_steps=4, logging_steps=4)
    params["baseline"].update(ngram_range=[1], C=[1.0])
    params["evaluate"]["bootstrap_samples"] = 200
    params["verdict"].update(min_metrics={}, min_margin_over_baseline=None, min_margin_over_base=None)
    params["export"].update(onnx=False, parity_rows=8)
    if name.startswith("pretrain"):
        params["ingest"]["sources"] = [
            source for source in params["ingest"]["sources"] if source["name"] == "movie_reviews"
        ]
        asked = params["init_model"]["from_scratch"]
        asked.update(vocab_size=600)
        asked["config"].update(SMALL[asked["architecture"]])


def begin_with(project: Project, source: str, name: str) -> None:
    """Make the folder the base model, and fetch it."""

    def edit(params: Any) -> None:
        params["paths"]["model_source"] = source
        params["verdict"] = {}
        params["fetch_model"]["model_name_or_path"] = name

    project.edit(edit)
    project.run("dvc", "repro", "choose_model")
    project.forget_runs()
    project.run("dvc", "repro", "-s", "fetch_model")


def test_a_model_folder_beside_the_project_is_watched_by_dvc(project, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "pretraining/models/export")
    begin_with(project, "../pretraining/models/export", "../pretraining/models/export")
    assert read_json(project.root / "reports/fetch_model.json")["sha256"] == sha256_tree(tiny_model)
    watched = {dep["path"] for dep in project.lock()["stages"]["fetch_model"]["deps"]}
    assert "../pretraining/models/export" in watched  # not the absolute path: the lock holds for every machine
    (folder / "README.md").write_text("---\nlicense: mit\n---\nTrained again.\n")
    begin_with(project, "../pretraining/models/export", "../pretraining/models/export")
    assert project.ran() == {"fetch_model"}
    assert read_json(project.root / "reports/fetch_model.json")["license"] == "mit"


@pytest.mark.heavy
def test_a_model_is_imported_from_another_project_s_history(project, tiny_model, tmp_path):
    other = Project(tmp_path / "pretraining")
    shutil.copytree(tiny_model, other.root / "models/export")
    other.run("git", "init", "--quiet")
    other.run("dvc", "init", "--quiet")
    other.run("dvc", "add", "--quiet", "models/export")
    other.commit()
    project.run("dvc", "import", "../pretraining", "models/export", "--out", "models/pretrained")
    begin_with(project, "models/pretrained", "./models/pretrained")
    assert sha256_tree(project.root / "models/fetched") == sha256_tree(tiny_model)

    card = other.root / "models/export/README.md"
    card.unlink()  # DVC may have made it a link into its cache
    card.write_text("---\nlicense: mit\n---\nTrained again.\n")
    other.run("dvc", "add", "--quiet", "models/export")
    other.commit()
    begin_with(project, "models/pretrained", "./models/pretrained")
    assert project.ran() == set()
    project.run("dvc", "update", "models/pretrained.dvc")
    begin_with(project, "models/pretrained", "./models/pretrained")
    assert project.ran() == {"fetch_model"}
    commit = other.run("git", "rev-parse", "HEAD").stdout.strip()
    assert YAML(typ="safe").load(project.root / "models/pretrained.dvc")["deps"][0]["repo"]["rev_lock"] == commit


@pytest.mark.heavy
def test_pretraining_and_fine_tuning_chained_by_dvc(tmp_path):
    """The two recipes, shrunken: to the end, nothing the second time, and again from fetch_model on another export."""
    first, second = recipe(tmp_path, "pretrain_encoder"), recipe(tmp_path, "finetune_pretrained")
    early = second.tunewright("check", check=False)
    assert early.returncode == 2
    assert f"{EXPORT} is no folder" in " ".join((early.stdout + early.stderr).split())

    first.run("dvc", "repro", timeout=900)
    assert read_json(first.root / "reports/fetch_model.json")["applies"] is False
    assert read_json(first.root / "reports/init_model.json")["architecture"] == "BertForMaskedLM"
    assert read_json(first.root / "reports/evaluate_base.json")["applies"] is True
    assert first.run("dvc", "status").stdout.strip() == "Data and pipelines are up to date."

    second.run("dvc", "repro", timeout=900)
    assert read_json(second.root / "reports/init_model.json")["applies"] is False
    exported = sha256_file(first.root / "models/export/model.safetensors")
    assert sha256_file(second.root / "models/base/model.safetensors") == exported
    vocabulary = (first.root / "models/base/tokenizer.json").read_bytes()
    assert (second.root / "models/export/tokenizer.json").read_bytes() == vocabulary
    assert read_json(second.root / "models/export/config.json")["architectures"] == ["BertForSequenceClassification"]
    second.forget_runs()
    second.run("dvc", "repro", timeout=900)
    assert second.ran() == set()

    first.edit(lambda params: params.update(seed=43))
    first.run("dvc", "repro", timeout=900)
    assert sha256_file(first.root / "models/export/model.safetensors") != exported
    assert EXPORT.removeprefix("..") in second.tunewright("why").stdout
    second.run("dvc", "repro", timeout=900)
    assert {"fetch_model", "init_model", "finetune"} <= second.ran()
    assert not second.ran() & {"ingest", "prepare", "baseline"}


@pytest.mark.heavy
def test_an_encoder_decoder_is_pretrained_and_then_fine_tuned(tmp_path):
    """A recipe of seq2seq_lm, whose two keys name what pretrain_encoder_decoder has exported."""
    first, second = recipe(tmp_path, "pretrain_encoder_decoder"), recipe(tmp_path, "summarization")
    export = "../pretrain_encoder_decoder/models/export"

    def begin(params: Any) -> None:
        params["paths"]["model_source"] = params["fetch_model"]["model_name_or_path"] = export
        params["evaluate"]["generation"].update(max_rows=4, max_new_tokens=6)

    second.edit(begin)
    first.run("dvc", "repro", timeout=900)
    assert read_json(first.root / "reports/init_model.json")["architecture"] == "BartForConditionalGeneration"
    metrics = read_json(first.root / "reports/evaluate.json")["splits"]["test"]["metrics"]
    assert set(metrics) == {"span_bits", "span_perplexity", "span_accuracy", "bits_saved"}

    second.run("dvc", "repro", "evaluate", timeout=900)
    exported = sha256_file(first.root / "models/export/model.safetensors")
    assert sha256_file(second.root / "models/base/model.safetensors") == exported
    assert sha256_file(second.root / "models/tuned/model.safetensors") != exported
    vocabulary = (first.root / "models/base/tokenizer.json").read_bytes()
    assert (second.root / "models/tuned/tokenizer.json").read_bytes() == vocabulary
