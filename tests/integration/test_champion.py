"""Champion and challenger over real git, DVC and models whose every answer is known.

The project has one stage, which lays out what was made for it: a classifier that always says the same, its predictions,
reports and export. So each revision's metrics are known, and a run takes seconds.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from ruamel.yaml import YAML

from flows import registry
from flows.comparing import compare, revision
from flows.graph import plan
from flows.promotion import promote, rollback
from tests.conftest import REPOSITORY, environment
from tunewright.errors import GateClosed, UserError
from tunewright.files import sha256_file, sha256_tree, write_json, write_parquet
from tunewright.label_metrics import one_label
from tunewright.predictions import with_rows, write_predictions

LABELS = ["negative", "positive"]
OUTS = ("data/prepared", "models/tuned", "models/export", "reports/predictions.parquet", "reports/evaluate.json")
AUDITED = "reports/audit_model.json"
DVC_YAML = {
    "stages": {
        "train": {"cmd": "cp -r made/. .", "deps": ["made"], "outs": [*OUTS, AUDITED, "reports/verdict.json"]},
    },
    "artifacts": {"model": {"path": "${paths.export}", "type": "model"}},
}
# 48 negative and 72 positive ones: who always says `positive` is right in 0.6 of them.
TEST = [(f"text {number}", LABELS[number >= 48]) for number in range(120)]


class Project:
    """The project, in its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def sh(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in it."""
        done = subprocess.run(
            command, cwd=self.folder, env=environment(), capture_output=True, text=True, check=False, timeout=500
        )
        assert done.returncode == 0 or not check, f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    def tunewright(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command line, to its end."""
        return self.sh(sys.executable, "-m", "flows.cli", *arguments, check=False)

    def make(self, says: str, *, train: list[str], sure: float = 0.75, verdict: bool = True) -> None:
        """What the stage lays out: a classifier that says this of every text, this surely."""
        made = self.folder / "made"
        shutil.rmtree(made, ignore_errors=True)
        _save_model(made / "models/tuned", says, sure)
        sha256 = sha256_tree(made / "models/tuned")
        shutil.copytree(made / "models/tuned", made / "models/export")
        files = {found.name: {"sha256": sha256_file(found)} for found in (made / "models/export").iterdir()}
        write_json(made / "models/export/MANIFEST.json", {"model_sha256": sha256, "files": files})
        for split, rows in (("train", [(text, "positive") for text in train]), ("validation", []), ("test", TEST)):
            write_parquet(_table(split, rows), made / "data/prepared" / f"{split}.parquet")
        test = _table("test", TEST)
        probabilities = np.full((len(TEST), 2), 1 - sure)
        probabilities[:, LABELS.index(says)] = sure
        found = one_label(test["label"], probabilities, LABELS, np.log(probabilities))
        write_predictions({"test": with_rows(found, test, "test")}, made / "reports/predictions.parquet")
        right = {"value": (0.4, 0.6)[LABELS.index(says)], "low": 0.3, "high": 0.7}
        splits = {"test": {"metrics": {"accuracy": right}}}
        write_json(made / "reports/evaluate.json", {"model_sha256": sha256, "metric": "accuracy", "splits": splits})
        # `negative` flips in a half of the texts, `positive` in none.
        rate = {"value": (0.5, 0.0)[LABELS.index(says)], "low": 0.0, "high": 0.6, "rows": 40}
        audited = {"attributes": [], "counterfactuals": {"text.gender": {"flip_rate": rate}}}
        write_json(made / AUDITED, audited)
        findings = [] if verdict else [{"rule": "verdict.min_metrics.accuracy", "verdict": "fail"}]
        judged = {"open": verdict, "findings": findings, "judged": {"model": sha256}}
        write_json(made / "reports/verdict.json", judged)

    def commit(self, message: str) -> str:
        """Run the stage and commit, and give the commit."""
        self.sh("dvc", "repro", "--quiet")
        self.sh("git", "add", "--all")
        self.sh("git", "commit", "--quiet", "--message", message)
        return self.sh("git", "rev-parse", "HEAD").stdout.strip()

    def set(self, dotted: str, value: Any) -> None:
        """Set one key of params.yaml."""
        yaml = YAML()
        params = yaml.load(self.folder / "params.yaml")
        section, key = dotted.split(".")
        params[section][key] = value
        yaml.dump(params, self.folder / "params.yaml")


def _table(split: str, rows: list[tuple[str, str]]) -> pa.Table:
    ids = pa.array([f"{split}-{number}" for number in range(len(rows))], pa.string())
    texts, labels = (pa.array([row[column] for row in rows], pa.string()) for column in (0, 1))
    return pa.table({"row_id": ids, "text": texts, "label": labels})


def _save_model(folder: Path, says: str, sure: float) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=8,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=16,
        id2label=dict(enumerate(LABELS)),
    )
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.zero_()
        model.classifier.bias[LABELS.index(says)] = math.log(sure / (1 - sure))
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "text": 1}, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The project with one revision: its model says `negative` of every text, and is right in 0.4 of test."""
    folder = tmp_path / "project"
    (folder / "reports").mkdir(parents=True)
    shutil.copy(REPOSITORY / "params.yaml", folder)
    YAML().dump(DVC_YAML, folder / "dvc.yaml")
    (folder / ".gitignore").write_text(".tunewright/\n__pycache__/\n")
    found = Project(folder)
    found.sh("git", "init", "--quiet", "--initial-branch=main")
    found.sh("dvc", "init", "--quiet")
    found.sh("dvc", "remote", "add", "--quiet", "--default", "store", str(tmp_path / "store"))
    found.set("champion.min_rows", 50)
    # Thirty of today's rows of test are among what the first model learned from, in other letters.
    found.make("negative", train=[f"TEXT  {number}" for number in range(90, 120)])
    found.commit("the first model")
    monkeypatch.chdir(folder)
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    return found


@pytest.mark.heavy
def test_a_champion_is_made_compared_with_replaced_and_put_back_and_nothing_runs_again(project: Project) -> None:
    assert "model@v0.0.1, model#champion#1" in promote(None)
    assert "is the champion already" in promote("HEAD")
    project.make("positive", train=["another text"])
    second = project.commit("the second model")

    # Of the 90 rows that count, 48 are negative and 42 positive: from 48/90 to 42/90.
    found = compare(revision("champion"), revision("HEAD"))
    assert (found.rows.test, found.rows.learned, found.rows.not_scored, found.rows.compared) == (120, 30, 0, 90)
    accuracy = found.metrics[0]
    assert (accuracy.first, accuracy.second) == (pytest.approx(48 / 90), pytest.approx(42 / 90))
    assert accuracy.difference is not None and accuracy.difference.value == pytest.approx(-6 / 90)
    assert accuracy.tolerance == 0.02 and accuracy.difference.low < -0.02 < accuracy.difference.high
    assert found.verdict == "undecided" and not found.blessed
    assert (found.first.name, found.second.commit) == ("model@v0.0.1", second)
    fair = [(row.feature, row.measure, row.first.value, row.second.value) for row in found.fairness]
    assert fair == [("", "accuracy", 0.4, 0.6), ("text.gender", "flip rate", 0.5, 0.0)]

    # The other way about nothing was learned from: all 120 count, and 72 against 48 of them is beyond chance.
    done = project.tunewright("compare", "HEAD", "champion", "--json")
    assert done.returncode == 3, done.stdout + done.stderr
    other = json.loads(done.stdout)
    assert other["verdict"] == "worse" and other["rows"]["compared"] == 120
    assert (other["metrics"][0]["first"], other["metrics"][0]["second"]) == (pytest.approx(0.6), pytest.approx(0.4))

    lock, (_, changed) = (project.folder / "dvc.lock").read_bytes(), plan()
    assert not changed
    assert "model@v0.0.2, model#champion#2" in promote("HEAD")
    assert compare(revision("champion"), revision(None)).verdict == "same_model"
    assert "model@v0.0.1 is the champion again" in rollback()
    champion = registry.champion()
    assert champion is not None and (champion.tag, champion.name) == ("model#champion#3", "model@v0.0.1")
    assert (project.folder / "dvc.lock").read_bytes() == lock and not plan()[1]


@pytest.mark.heavy
def test_what_is_no_champion_is_refused(project: Project) -> None:
    with pytest.raises(UserError, match="no champion yet"):
        revision("champion")
    project.make("positive", train=[], verdict=False)
    closed = project.commit("closed")
    with pytest.raises(GateClosed, match=r"its verdict is closed, by verdict\.min_metrics\.accuracy"):
        promote(closed)
    done = project.tunewright("promote")
    assert done.returncode == 3 and "verdict is closed" in done.stdout

    project.make("positive", train=[])
    write_json(project.folder / "made/models/export/MANIFEST.json", {"model_sha256": "0" * 64})
    stale = project.commit("the export of an earlier model")
    with pytest.raises(UserError, match="is of another model"):
        promote(stale)

    project.make("positive", train=[], sure=0.8)
    project.sh("dvc", "repro", "--quiet")
    with pytest.raises(UserError, match=r"dvc\.lock is not committed"):
        promote(None)
    with pytest.raises(UserError, match="git knows no revision 'nowhere'"):
        promote("nowhere")
    project.sh("git", "rm", "--quiet", "--cached", "dvc.lock")
    project.sh("git", "commit", "--quiet", "--message", "no lock")
    with pytest.raises(UserError, match=r"records no models/export"):
        promote("HEAD")
    assert registry.history() == []


@pytest.mark.heavy
def test_a_champion_comes_from_the_remote_or_is_told_to_be_missing(project: Project) -> None:
    promote(None)
    project.make("positive", train=[])
    project.commit("the second model")
    shutil.rmtree(project.folder / ".dvc/cache")
    with pytest.raises(
        UserError, match=r"reports/evaluate\.json of [0-9a-f]{40}: that revision has no such output, or"
    ):
        compare(revision("champion"), revision(None))


@pytest.mark.heavy
def test_a_pushed_champion_is_fetched_and_dvc_knows_it(project: Project, tmp_path: Path) -> None:
    promote(None)
    project.sh("dvc", "push", "--quiet")
    project.make("positive", train=[])
    project.commit("the second model")
    shutil.rmtree(project.folder / ".dvc/cache")
    assert compare(revision("champion"), revision(None)).rows.compared == 90
    project.sh("dvc", "artifacts", "get", ".", "model", "--stage", "champion", "--out", str(tmp_path / "got"))
    assert (tmp_path / "got/MANIFEST.json").read_bytes() != (
        project.folder / "models/export/MANIFEST.json"
    ).read_bytes()


@pytest.mark.heavy
def test_who_deploys_elsewhere_gets_the_champion_with_its_params_and_its_answers(
    project: Project, tmp_path: Path
) -> None:
    project.set("tokenize.max_length", 16)
    project.commit("short texts")
    promote(None)
    project.sh("dvc", "push", "--quiet")
    project.make("positive", train=[])
    project.set("tokenize.max_length", 8)
    project.commit("the second model")
    repository = project.folder.as_uri()
    elsewhere = Project(tmp_path / "elsewhere")
    elsewhere.folder.mkdir()
    elsewhere.sh("dvc", "artifacts", "get", repository, "model", "--stage", "champion", "--out", "model")
    tag = elsewhere.sh("gto", "show", "--repo", repository, "model#champion", "--ref").stdout.strip()
    assert tag == "model@v0.0.1"
    elsewhere.sh("dvc", "get", repository, "params.yaml", "--rev", tag)
    assert YAML().load(elsewhere.folder / "params.yaml")["tokenize"]["max_length"] == 16
    (line,) = elsewhere.tunewright("predict", "--model", "model", "text 1").stdout.splitlines()
    assert json.loads(line)["predicted"] == "negative"
    (elsewhere.folder / "model/config.json").write_text("{}")
    refused = elsewhere.tunewright("predict", "--model", "model", "text 1")
    assert refused.returncode == 2 and "model/config.json: is missing or not as MANIFEST.json has it" in refused.stdout


@pytest.mark.heavy
def test_other_labels_are_not_comparable(project: Project) -> None:
    promote(None)
    project.set("task.labels", ["negative", "positive", "neither"])
    project.make("positive", train=[])
    project.commit("another label")
    done = project.tunewright("compare")
    assert done.returncode == 3
    assert "not comparable" in done.stdout and "task.labels: ['negative', 'positive'] in model@v0.0.1" in done.stdout


def run_flow(project: Project, folder: Path, api_url: str, **settings: Any) -> tuple[str, str]:
    """Run the flow in that folder, and give its last step's state and message."""
    arguments = "".join(f", {name}={value!r}" for name, value in settings.items())
    program = f"from flows.reproduce import reproduce\nprint(reproduce(champion=True{arguments}, return_state=True))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**environment(), "PREFECT_API_URL": api_url},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0 and "Completed" in done.stdout, done.stdout + done.stderr
    return done.stdout, done.stderr


@pytest.mark.heavy
def test_the_flow_promotes_what_it_blesses_and_nothing_else(project: Project, prefect_server: str, ask: Any) -> None:
    def step() -> tuple[str, str]:
        run = ask(prefect_server, "/flow_runs/filter", sort="START_TIME_DESC", limit=1)[0]
        runs = ask(prefect_server, "/task_runs/filter", flow_runs={"id": {"any_": [run["id"]]}})
        (found,) = [found["state"] for found in runs if found["name"] == "champion"]
        return found["name"], found["message"]

    run_flow(project, project.folder, prefect_server)
    assert step() == ("Promoted", "the first champion; model@v0.0.1, model#champion#1")
    run_flow(project, project.folder, prefect_server)
    assert step()[0] == "SameModel"

    project.make("positive", train=[])
    run_flow(project, project.folder, prefect_server)
    name, message = step()
    assert name == "NotBlessed" and "could be worse than tolerated, against model@v0.0.1: accuracy -0.0667" in message
    artifacts = ask(prefect_server, "/artifacts/filter", limit=1, artifacts={"key": {"any_": ["champion-metrics"]}})
    table = json.loads(artifacts[0]["data"])
    assert table[0]["metric"] == "accuracy" and table[0]["difference"] == "-0.0667"
    assert table[0]["this run"] == "0.4667" and table[0]["verdict"] == "undecided"

    # Blessed, and nobody has committed it.
    project.set("champion.tolerances", {"accuracy": 0.5, "macro_f1": 0.5})
    run_flow(project, project.folder, prefect_server)
    assert step()[0] == "NotRecorded"
    commit = project.commit("the second model")
    run_flow(project, project.folder, prefect_server)
    assert step()[0] == "Promoted"
    champion = registry.champion()
    assert champion is not None and (champion.name, champion.commit) == ("model@v0.0.2", commit)

    # Whoever rolls back has a reason that no figure shows: the next run leaves it so.
    rollback()
    run_flow(project, project.folder, prefect_server)
    name, message = step()
    assert name == "RolledBack" and "model@v0.0.2" in message
    champion = registry.champion()
    assert champion is not None and champion.name == "model@v0.0.1"


@pytest.mark.heavy
def test_a_deployed_run_s_clone_gives_its_tags_to_the_project(
    project: Project, prefect_server: str, tmp_path: Path
) -> None:
    from flows import clones

    root = tmp_path / "clone"
    clones.new(str(project.folder), root)
    clones.attach(root)
    head = project.sh("git", "rev-parse", "HEAD").stdout.strip()
    told = clones.RunClone(str(project.folder), str(project.folder), "main", head, "project", "able-fox")
    clones.tell(root, told)
    run_flow(project, root, prefect_server, record="branch")
    champion = registry.champion()
    assert champion is not None and (champion.name, champion.commit) == ("model@v0.0.1", head)
