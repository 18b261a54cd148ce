"""The whole pipeline on real reviews with a tiny model: by the flow, by DVC alone, after every kind of edit.

One project runs through the flow, a second one by `dvc repro` without Prefect, and both must agree to the byte.
Then the first is edited, one thing after another: each edit has a reason that `tunewright why` names before, and a
set of stages that run, and no more. The table that this makes stands in docs/what-runs-again.md.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import pytest

from flows.provenance import provenance
from flows.publish import publish
from flows.published import verify_published
from tests.conftest import REPOSITORY, Project
from tests.integration.test_model_service import ask, served
from tests.unit.test_signing import make_key
from tunewright.errors import GateClosed
from tunewright.facts import resolve
from tunewright.files import read_json, read_parquet, sha256_file, sha256_tree, write_json
from tunewright.params import load_params

ORDER = [
    "fetch_data",
    "ingest",
    "validate",
    "prepare",
    "audit_data",
    "mitigate",
    "drift",
    "check_leaks",
    "gate_data",
    "choose_model",
    "fetch_model",
    "init_model",
    "tokenize",
    "features",
    "find_lr",
    "finetune",
    "baseline",
    "evaluate_base",
    "evaluate",
    "control",
    "audit_model",
    "explain",
    "memorization",
    "threshold_policy",
    "suites",
    "verdict",
    "report",
    "card",
    "gate_model",
    "export",
    "convert",
]
STAGES = set(ORDER)
FROM_VERDICT = {"verdict", "report", "card", "gate_model", "export", "convert"}
FROM_FINETUNE = {
    "finetune",
    "evaluate",
    "control",
    "audit_model",
    "explain",
    "memorization",
    "threshold_policy",
    "suites",
    *FROM_VERDICT,
}
FROM_TOKENIZE = {"tokenize", "features", "find_lr", "evaluate_base", *FROM_FINETUNE}
FROM_PREPARE = STAGES - {"fetch_data", "ingest", "validate", "choose_model", "fetch_model"}


def convert_to(*formats: str) -> Callable[[Project], None]:
    """Change the forms that are made. As a new section: a list with a comment behind it can't be changed twice."""
    changed = {"formats": list(formats), "max_metric_loss": 1.0}
    return lambda project: project.edit(lambda params: params.update(convert={**params["convert"], **changed}))


def abstaining(folder: Path, model: Path) -> Project:
    """A small project whose model answers six rows in ten, and has a form of eight bits."""
    project = Project.make(folder, model)
    project.edit(lambda params: params["control"].update(abstain={"min_coverage": 0.6}))
    convert_to("onnx_int8")(project)
    return project.commit()


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Project, str]:
    """A project after its first `tunewright run`, and what that printed."""
    project = abstaining(tmp_path_factory.mktemp("flow"), tiny_model)
    return project, project.tunewright("run").stdout


@pytest.fixture(scope="module")
def ran(first_run) -> Project:
    return first_run[0]


def test_the_first_run_runs_every_stage_and_ends_with_a_summary(first_run):
    project, printed = first_run
    assert project.ran() == STAGES
    for stage in STAGES:
        assert f"{stage}" in printed
    assert "models/export" in printed and "reports/report.html" in printed
    assert (project.root / "models/export/model.onnx").is_file()


def test_the_second_run_runs_nothing_and_says_so(ran):
    ran.forget_runs()
    printed = ran.tunewright("run").stdout
    assert ran.ran() == set()
    assert f"Nothing to run: all {len(STAGES)} stages are up to date." in printed
    assert "Nothing would run" in ran.tunewright("why").stdout
    assert ran.run("dvc", "status").stdout.strip() == "Data and pipelines are up to date."


def test_the_card_goes_with_the_export_and_a_change_of_the_cost_runs_nothing(ran):
    export, card = ran.root / "models/export", ran.root / "models/card"
    for name in ("README.md", "DATA_SHEET.md", "card.json"):
        assert (export / name).read_bytes() == (card / name).read_bytes()
        assert name in read_json(export / "MANIFEST.json")["files"]
    for name, fact in read_json(export / "card.json")["facts"].items():
        assert sha256_file(ran.root / fact["file"]) == fact["sha256"], name
        assert resolve(read_json(ran.root / fact["file"]), fact["pointer"]) == fact["value"], name
    told = read_json(ran.root / "reports/run.json")["cost"]
    assert set(told["stages"]) == STAGES
    assert told["unknown"] == []
    assert told["run"] == told["model"]
    assert 0 < told["run"]["cpu_hours"] < 1
    assert told["tokens_trained"] > 0
    assert " kWh |" in ran.tunewright("card").stdout

    before = sha256_tree(card)
    ran.edit(lambda params: params["cost"].update(carbon_intensity_g_per_kwh=0.0))
    assert "Nothing would run" in ran.tunewright("why").stdout
    ran.tunewright("card", "--output", "shown")
    assert "| greenhouse gases | 0 g CO₂e |" in (ran.root / "shown/README.md").read_text(encoding="utf-8")
    assert "Cost of compute" in (ran.root / "shown/report.html").read_text(encoding="utf-8")
    assert sha256_tree(card) == before
    shutil.rmtree(ran.root / "shown")
    ran.run("git", "checkout", "--quiet", "params.yaml")


def files_in(folder: Path) -> list[str]:
    """The files at any depth, relative to the folder."""
    return sorted(found.relative_to(folder).as_posix() for found in folder.rglob("*") if found.is_file())


def flipped(content: bytes, at: int = -2) -> bytes:
    """The same with one bit changed, by default in the last byte but one: of a JSON file the last bracket."""
    changed = bytearray(content)
    changed[at] ^= 1
    return bytes(changed)


def test_verify_hashes_the_whole_chain_and_names_each_byte_that_was_changed(ran):
    """FAULTS.md row 11: DVC says that all is up to date where an object of its cache was altered."""
    assert "every byte is as recorded" in ran.tunewright("verify").stdout
    raw = ran.root / "data/raw/movie_reviews/movie_reviews.tsv"
    weights, tokens = "models/tuned/model.safetensors", "data/tokens/train.arrow"
    listed = {out["path"]: out["md5"] for out in ran.lock()["stages"]["prepare"]["outs"]}
    folder = ran.root / ".dvc/cache/files/md5"
    inside = read_json(folder / listed["data/prepared"][:2] / listed["data/prepared"][2:])
    cached = next(folder / file["md5"][:2] / file["md5"][2:] for file in inside if file["relpath"] == "test.parquet")
    more = ("models/export/model.onnx", "models/card/README.md", "reports/ingest.json", "models/export/MANIFEST.json")
    # The last line of a stage's code, after which it is no Python any more.
    code = "stages/explain.py"
    changed = [raw, ran.root / tokens, ran.root / weights, cached, *(ran.root / name for name in (*more, code))]
    before = {path: path.read_bytes() for path in changed}
    try:
        for path, content in before.items():
            path.chmod(0o644)
            path.write_bytes(flipped(content, -9 if path.name == "MANIFEST.json" else -1))
        done = ran.tunewright("verify", check=False)
    finally:
        for path, content in before.items():
            path.write_bytes(content)
    assert done.returncode == 3
    told = done.stdout.splitlines()
    for name, whose in (
        (raw.relative_to(ran.root).as_posix(), "read by ingest"),
        (tokens, "written by tokenize"),
        (weights, "written by finetune"),
        ("models/export/model.onnx", "exported"),
        ("models/card/README.md", "written by card"),
        ("models/export/MANIFEST.json", "written by export"),
        (code, "read by explain"),
        ("reports/ingest.json", "in the export's chain"),
        ("data/tokens", "in the export's chain"),
        (cached.name, "of data/prepared, in DVC's cache"),
    ):
        assert any(name in line and whose in line for line in told), (name, told)
    assert "every byte is as recorded" in ran.tunewright("verify").stdout


def test_what_was_altered_in_the_cache_after_the_gate_is_not_exported(ran):
    """FAULTS.md row 11: one bit of an object of DVC's cache, which `dvc checkout` lays out as if it were whole."""
    judged = {  # what is altered → what a stage has recorded
        "models/tuned/model.safetensors": "models/tuned",
        "models/control.json": "models/control.json",
        "data/tokens/test.arrow": "data/tokens",
        "models/card/README.md": "models/card",
        "models/threshold_policy.json": "models/threshold_policy.json",
    }
    expected = {path: sha256_tree(ran.root / path) for path in judged.values()}
    exported = sha256_tree(ran.root / "models/export")
    folder = ran.root / ".dvc/cache/files/md5"
    outs = {out["path"]: out["md5"] for stage in ran.lock()["stages"].values() for out in stage["outs"]}
    objects = {}
    for name, path in judged.items():
        md5 = outs[path]
        if md5.endswith(".dir"):
            inside = read_json(folder / md5[:2] / md5[2:])
            md5 = next(file["md5"] for file in inside if f"{path}/{file['relpath']}" == name)
        objects[name] = folder / md5[:2] / md5[2:]
    whole = {name: file.read_bytes() for name, file in objects.items()}
    try:
        for name, file in objects.items():
            (ran.root / name).unlink()
            file.chmod(0o644)
            file.write_bytes(flipped(whole[name]))
            file.chmod(0o444)
        ran.run("dvc", "checkout", *judged.values())
        laid_out = {name: (ran.root / name).read_bytes() for name in judged}
        for name, content in whole.items():
            assert laid_out[name] == flipped(content), f"{name}: dvc checkout has seen it"
            (ran.root / name).chmod(0o644)
            (ran.root / name).write_bytes(content)
        for name, path in judged.items():
            (ran.root / name).write_bytes(laid_out[name])
            done = ran.stage("export", check=False)
            found = sha256_tree(ran.root / path)
            (ran.root / name).write_bytes(whole[name])
            assert done.returncode == (2 if path == "data/tokens" else 3), (name, done.stderr)
            assert f"{path}: SHA-256 {found}; expected {expected[path]}" in done.stderr
            assert "`tunewright verify` names what was altered" in done.stderr
            assert sha256_tree(ran.root / "models/export") == exported
    finally:
        for name, file in objects.items():
            for path in (file, ran.root / name):
                path.unlink(missing_ok=True)
                path.write_bytes(whole[name])
            file.chmod(0o444)
    assert "every byte is as recorded" in ran.tunewright("verify").stdout


def test_nothing_is_published_that_is_not_committed(ran):
    done = ran.tunewright("publish", check=False)
    assert done.returncode == 2
    assert done.stdout.startswith("not committed: dvc.lock.")
    assert not (ran.root / "published").exists()


class TestPublished:
    """What `tunewright publish` writes of a run that is committed, signed with a key of its own."""

    @pytest.fixture(scope="class")
    def keys(self, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
        """A private key, its public key, and another's."""
        folder = tmp_path_factory.mktemp("keys")
        return (*make_key(folder, "ours"), make_key(folder, "theirs")[1])

    @pytest.fixture(scope="class")
    def published(self, ran: Project, keys: tuple[Path, Path, Path]) -> Iterator[Path]:
        ran.run("git", "add", "dvc.lock")
        ran.run("git", "commit", "--quiet", "--message", "a run")
        ran.run("git", "remote", "add", "origin", "https://me:secret@example.com/team/reviews.git")
        try:
            printed = ran.tunewright("publish", "--signing-key", str(keys[0])).stdout
            assert "export ← " in printed and f"signed with {keys[0]}" in printed
            yield ran.root / "published"
        finally:
            shutil.rmtree(ran.root / "published", ignore_errors=True)
            ran.run("git", "remote", "remove", "origin")
            ran.run("git", "reset", "--quiet", "HEAD~1")

    def test_the_chain_leads_from_the_export_to_the_raw_bytes(self, ran, published):
        told = read_json(published / "provenance.json")
        assert told["commit"] == ran.run("git", "rev-parse", "HEAD").stdout.strip()
        assert told["remote"] == "https://example.com/team/reviews.git"
        chain = told["chain"]
        for link in chain.values():
            assert link["sha256"] == sha256_tree(ran.root / link["path"])
        assert {name: set(link["made_from"]) for name, link in chain.items()} == {
            "converted": {"export", "tokens", "prepared"},
            "export": {"weights", "tokens", "prepared"},
            "weights": {"tokens", "base_model"},
            "tokens": {"prepared", "base_model"},
            "base_model": {"fetched_model", "prepared"},
            "fetched_model": {"model_source"},
            "prepared": {"ingested"},
            "ingested": {"raw", "fetched_data"},
            "raw": set(),
            "fetched_data": set(),
            "model_source": set(),
        }
        raw = ran.root / "data/raw/movie_reviews/movie_reviews.tsv"
        inside = {ran.root / chain["raw"]["path"] / name: file for name, file in chain["raw"]["files"].items()}
        assert inside[raw] == {"sha256": sha256_file(raw), "size": raw.stat().st_size}
        assert told["base_model"]["model_name_or_path"] == "./models/tiny"
        assert told["base_model"]["sha256"] == chain["fetched_model"]["sha256"]
        assert told["params"]["sha256"] == sha256_file(ran.root / "params.yaml")
        assert told["params"]["stages"]["finetune"]["seed"] == 42
        for path in ("requirements/train.txt", "requirements/constraints.txt"):
            assert told["pins"][path]["sha256"] == sha256_file(ran.root / path)
        assert told["code"]["stages/finetune.py"]["sha256"] == sha256_file(ran.root / "stages/finetune.py")
        assert {"export", "convert"} < set(told["stages"])
        text = (published / "provenance.json").read_text(encoding="utf-8")
        assert ":secret@" not in text and str(ran.root) not in text

    def test_the_folder_is_the_export_with_the_card_that_knows_the_cost(self, ran, published):
        manifest = read_json(published / "MANIFEST.json")
        there = set(files_in(published))
        assert there == {*manifest["files"], "MANIFEST.json", "model.sig"}
        assert there > set(files_in(ran.root / "models/export"))
        form = "converted/onnx_int8"
        assert {name for name in there if name.startswith("converted/")} == {
            f"{form}/{name}" for name in files_in(ran.root / "models" / form)
        }
        for name in files_in(ran.root / "models" / form):
            assert (published / form / name).read_bytes() == (ran.root / "models" / form / name).read_bytes()
        assert read_json(published / form / "VERIFIED")["model_sha256"] == manifest["model_sha256"]
        assert manifest["chain"] == read_json(published / "provenance.json")["chain"]
        for name in ("model.safetensors", "model.onnx", "tokenizer.json", "config.json"):
            assert (published / name).read_bytes() == (ran.root / "models/export" / name).read_bytes()
        assert "greenhouse gases" in (published / "README.md").read_text(encoding="utf-8")
        assert "Cost of compute" in (published / "report.html").read_text(encoding="utf-8")
        assert (published / "params.yaml").read_bytes() == (ran.root / "params.yaml").read_bytes()

    def test_it_answers_wherever_it_stands_as_in_the_project(self, ran, published, tmp_path):
        texts = ("A fine film.", "  What a   bore!  ")
        expected = ran.tunewright("predict", "--model", "models/export", *texts).stdout
        alone = Project(tmp_path)
        shutil.copytree(published, tmp_path / "received")
        assert alone.tunewright("predict", "--model", "received", *texts).stdout == expected
        # Nor do other params change it, and its own are taken only as they were published.
        (tmp_path / "params.yaml").write_text("seed: many\n", encoding="utf-8")
        assert alone.tunewright("predict", "--model", "received", *texts).stdout == expected
        with (tmp_path / "received/params.yaml").open("a") as stream:
            stream.write("# another\n")
        refused = alone.tunewright("predict", "--model", "received", *texts, check=False)
        assert refused.returncode == 2
        assert "received/params.yaml: is missing or not as MANIFEST.json has it" in refused.stdout + refused.stderr

    def test_the_bill_of_materials_is_valid_and_names_what_the_model_is_made_of(self, published):
        from cyclonedx.schema import SchemaVersion
        from cyclonedx.validation.json import JsonStrictValidator

        text = (published / "sbom.cdx.json").read_text(encoding="utf-8")
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
        told, origin = json.loads(text), read_json(published / "provenance.json")
        assert datetime.fromisoformat(told["metadata"]["timestamp"]) == datetime.fromisoformat(origin["committed"])
        model = told["metadata"]["component"]
        assert (model["type"], model["version"]) == ("machine-learning-model", origin["commit"])
        (base,) = model["pedigree"]["ancestors"]
        assert base["hashes"] == [{"alg": "SHA-256", "content": origin["base_model"]["sha256"]}]
        files = {file["name"]: file["hashes"][0]["content"] for file in model["components"]}
        assert files["model.onnx"] == sha256_file(published / "model.onnx")
        assert files["README.md"] == sha256_file(published / "README.md")
        components = {component["name"]: component for component in told["components"]}
        assert components["movie_reviews"]["type"] == "data"
        assert components["movie_reviews"]["licenses"] == [{"license": {"id": "MIT"}}]
        assert components["transformers"]["purl"] == f"pkg:pypi/transformers@{version('transformers')}"
        assert "pytest" not in components
        needs = {one["ref"]: one.get("dependsOn", []) for one in told["dependencies"]}
        transformers, tokenizers = (components[name]["bom-ref"] for name in ("transformers", "tokenizers"))
        assert transformers in needs["model"] and tokenizers in needs[transformers]

    def test_publishing_again_gives_the_same_bytes_and_another_signature(self, ran, published, keys, monkeypatch):
        before = {name: (published / name).read_bytes() for name in files_in(published)}
        monkeypatch.chdir(ran.root)
        publish(keys[0])
        after = {name: (published / name).read_bytes() for name in files_in(published)}
        assert before.pop("model.sig") != after.pop("model.sig")
        assert before == after
        assert verify_published(published, keys[1]).mismatches == []

    def test_verify_names_each_byte_that_was_changed(self, published, tmp_path):
        names = [name for name in files_in(published) if name not in ("MANIFEST.json", "model.sig")]
        assert {"README.md", "provenance.json", "sbom.cdx.json", "model.safetensors", "model.onnx"} < set(names)
        assert {"params.yaml", "converted/onnx_int8/model.onnx"} < set(names)
        folder = tmp_path / "published"
        shutil.copytree(published, folder)
        for name in names:
            content = (folder / name).read_bytes()
            (folder / name).write_bytes(flipped(content))
            found = verify_published(folder, None)
            (folder / name).write_bytes(content)
            assert found.mismatches[0].what == f"{folder / name} (published)"
        (folder / "more.bin").touch()
        (folder / "config.json").unlink()
        (folder / "control.json").rename(tmp_path / "control.json")
        (folder / "control.json").symlink_to(tmp_path / "control.json")
        mismatches = verify_published(folder, None).mismatches
        assert {mismatch.what.removeprefix(f"{folder}/"): mismatch.found for mismatch in mismatches} == {
            "control.json (published)": "a link",
            "more.bin (published)": "a file",
            "config.json (published)": "no such file",
        }

    def test_a_manifest_that_was_changed_is_found_out(self, published, keys, tmp_path):
        folder = tmp_path / "published"
        shutil.copytree(published, folder)
        good = read_json(folder / "MANIFEST.json")
        for key, value in (("commit", "0" * 40), ("model_sha256", "0" * 64), ("passed", {}), ("chain", {})):
            write_json(folder / "MANIFEST.json", {**good, key: value})
            (found,) = verify_published(folder, None).mismatches
            assert found.what == f"{folder}/MANIFEST.json: {key} (published)"
        (folder / "MANIFEST.json").write_bytes(flipped((published / "MANIFEST.json").read_bytes()))
        (found,) = verify_published(folder, None).mismatches
        assert found.what == f"{folder}/MANIFEST.json (published)" and "no valid JSON" in found.found
        # A forged folder that agrees with itself: only the signature tells, and names the files.
        (folder / "README.md").write_text("# A better model\n", encoding="utf-8")
        forged = {"sha256": sha256_file(folder / "README.md"), "size": (folder / "README.md").stat().st_size}
        write_json(folder / "MANIFEST.json", {**good, "files": {**good["files"], "README.md": forged}})
        assert verify_published(folder, None).mismatches == []
        (found,) = verify_published(folder, keys[1]).mismatches
        assert found.what == f"{folder}/model.sig (signature)"
        assert "'README.md'" in found.found and "'MANIFEST.json'" in found.found

    def test_verify_checks_the_signature_and_has_an_exit_status(self, ran, published, keys):
        _, public, other = keys
        asked = ("verify", "--published", published.name, "--public-key")
        good = ran.tunewright(*asked, str(public)).stdout
        assert "every byte is as listed" in good and f"signature checked with {public}" in good
        bad = ran.tunewright(*asked, str(other), check=False)
        assert bad.returncode == 3 and "published/model.sig (signature): found Key mismatch" in bad.stdout

    def test_nothing_is_published_that_is_not_as_recorded(self, ran, published, monkeypatch):
        before = sha256_tree(published)
        weights = ran.root / "models/tuned/model.safetensors"
        content = weights.read_bytes()
        weights.chmod(0o644)
        weights.write_bytes(flipped(content))
        monkeypatch.chdir(ran.root)
        try:
            with pytest.raises(GateClosed, match=r"models/tuned/model\.safetensors \(written by finetune\)"):
                publish(None)
        finally:
            weights.write_bytes(content)
        assert sha256_tree(published) == before

    def test_what_the_card_keeps_back_is_kept_back_with_the_hashes_of_what_holds_it(self, ran, monkeypatch):
        card = ran.root / "models/export/card.json"
        content = card.read_bytes()
        card.chmod(0o644)
        monkeypatch.chdir(ran.root)
        try:
            write_json(card, {**json.loads(content), "kept_back": ["seed"]})
            told = provenance(load_params())
        finally:
            card.write_bytes(content)
        assert told["params"]["kept_back"] == ["seed"]
        assert told["params"]["sha256"] is told["lock_sha256"] is None
        assert all("seed" not in keys for keys in told["params"]["stages"].values())
        assert told["params"]["stages"]["finetune"]["finetune"]["learning_rate"] == 1e-3


@pytest.mark.heavy  # test_flow.py shows the same on a project of four stages
def test_dvc_alone_does_the_same_work_and_gives_the_same_lock(ran, tmp_path_factory, tiny_model):
    alone = abstaining(tmp_path_factory.mktemp("dvc"), tiny_model)
    alone.run("dvc", "repro")
    assert alone.ran() == STAGES
    assert alone.lock() == ran.lock()
    assert not (alone.root / ".tunewright/prefect").exists()


def test_what_is_produced_is_ignored_by_git_and_the_lock_is_not(ran):
    assert ran.run("git", "status", "--porcelain", "--untracked-files=all").stdout.split() == ["??", "dvc.lock"]


def test_the_tuned_model_opens_in_plain_transformers(ran):
    from transformers import pipeline

    for folder in ("models/tuned", "models/export"):
        (found,) = pipeline("text-classification", str(ran.root / folder))("A fine film.")
        assert found["label"] in {"negative", "positive"}
        assert 0.5 <= found["score"] <= 1.0


def test_score_predict_and_serve_model_honour_the_control_of_the_run_alike(ran, tmp_path):
    import numpy as np
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    shutil.copytree(ran.root / "models/export", tmp_path / "models/export")
    shutil.copy(ran.root / "params.yaml", tmp_path)
    alone = Project(tmp_path)  # nothing else of the project is there
    texts = read_parquet(ran.root / "data/prepared/test.parquet")["text"].to_pylist()[:40]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    alone.tunewright("score", "new.jsonl", "--output", "new.parquet")
    labels = ("negative", "positive")
    answers = {"score": read_parquet(tmp_path / "new.parquet").to_pylist()}
    for row in answers["score"]:
        row["probabilities"] = {label: row[f"probability_{label}"] for label in labels}
    answers["predict"] = [json.loads(line) for line in alone.tunewright("predict", *texts).stdout.splitlines()]
    with served(tmp_path) as (url, _):
        answers["serve-model"] = ask(f"{url}/predict", {"texts": texts})[1]["answers"]

    # By the definition, of what the exported model gives in plain Transformers.
    control = read_json(tmp_path / "models/export/control.json")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "models/export")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "models/export").eval()
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
    with torch.no_grad():
        expected = (model(**inputs).logits / control["temperature"]).softmax(dim=-1)
    below = (expected.amax(dim=-1) < control["abstain_below"]).tolist()
    assert control["temperature"] != 1.0 and 0 < sum(below) < len(texts)
    for by, found in answers.items():
        assert [answer["abstained"] for answer in found] == below, by
        assert [answer["predicted"] is None for answer in found] == below, by
        given = [[answer["probabilities"][label] for label in labels] for answer in found]
        np.testing.assert_allclose(given, expected, atol=1e-5, rtol=0, err_msg=by)


def edit_text(path: str, old: str, new: str) -> Callable[[Project], None]:
    def change(project: Project) -> None:
        text = (project.root / path).read_text(encoding="utf-8")
        assert old in text
        (project.root / path).write_text(text.replace(old, new, 1), encoding="utf-8", newline="")

    return change


def set_param(section: str, **values: object) -> Callable[[Project], None]:
    return lambda project: project.edit(lambda params: params[section].update(values))


def flip_one_label(project: Project) -> None:
    path = project.root / "data/raw/movie_reviews/movie_reviews.tsv"
    lines = path.read_bytes().split(b"\r\n")
    assert lines[0].startswith(b"1\t2.26666666667\t")
    lines[0] = lines[0].replace(b"\t2.26", b"\t-2.26", 1)
    path.write_bytes(b"\r\n".join(lines))


def search_the_rate(project: Project) -> None:
    """`learning_rate: auto`, with three candidates of two steps, the better two of which get four."""
    set_param("finetune", learning_rate="auto")(project)
    row = {"min_lr": 1e-5, "max_lr": 2e-3, "num_candidates": 3}
    short = {"first_rung_steps": 2, "reduction_factor": 2, "max_validation_rows": 64, "range_test_steps": 4}
    set_param("find_lr", **row, **short)(project)


def it_trained_at_the_rate_that_ranked_first(project: Project) -> None:
    found, tuned = (read_json(project.root / f"reports/{stage}.json") for stage in ("find_lr", "finetune"))
    assert [(rung["steps"], len(rung["trials"])) for rung in found["rungs"]] == [(2, 3), (4, 2)]
    losses = {trial["learning_rate"]: trial["validation_loss"] for trial in found["rungs"][-1]["trials"]}
    assert len(set(losses.values())) == 2
    assert tuned["learning_rate"] == found["learning_rate"] == min(losses, key=losses.__getitem__)


@dataclass
class Change:
    name: str
    make: Callable[[Project], None]
    named: str
    """What `tunewright why` must name before the run."""
    expected: set[str]
    then: Callable[[Project], None] | None = None
    """What else has to be true after it."""


def without_onnx(project: Project) -> None:
    """Nor what is made of it."""
    set_param("export", onnx=False)(project)
    convert_to()(project)


CHANGES = [
    # First, because what follows is cheaper for it.
    Change("no ONNX", without_onnx, "export.onnx", {"export", "convert"}),
    Change(
        "learning rate",
        search_the_rate,
        "finetune.learning_rate",
        {"find_lr", *FROM_FINETUNE},
        it_trained_at_the_rate_that_ranked_first,
    ),
    Change("split seed", set_param("prepare", split_seed=1), "prepare.split_seed", FROM_PREPARE),
    Change("one changed label", flip_one_label, "data/raw/movie_reviews", STAGES - {"fetch_data", "fetch_model"}),
    Change("max_length", set_param("tokenize", max_length=40), "tokenize.max_length", {"choose_model", *FROM_TOKENIZE}),
    Change(
        "a gate's threshold", set_param("verdict", min_metrics={"accuracy": 0.2}), "verdict.min_metrics", FROM_VERDICT
    ),
    # Its outputs are the same bytes as before, so nothing below it runs.
    Change(
        "a line of a stage's code",
        edit_text("stages/baseline.py", "from __future__", "# A comment.\nfrom __future__"),
        "stages/baseline.py",
        {"baseline"},
    ),
    # Another pin can give other weights, so all that uses it runs; here the versions are the same, and so are the
    # outputs, but for the versions that the page shows: verdict and gate_model have nothing new to read.
    Change(
        "a pin in requirements/train.txt",
        edit_text("requirements/train.txt", "datasets==", "# pinned again\ndatasets=="),
        "requirements/train.txt",
        {
            "fetch_data",
            "fetch_model",
            "init_model",
            "tokenize",
            "features",
            "find_lr",
            "finetune",
            "evaluate_base",
            "evaluate",
            "audit_model",
            "explain",
            "memorization",
            "suites",
            "report",
            "card",
            "export",
            "convert",
        },
    ),
]


@pytest.fixture(scope="module")
def table() -> list[str]:
    """A row for each change that was made: what `why` named, and the stages that ran."""
    return []


# In the gate, what costs least; each edit costs a run of what it touches.
IN_THE_GATE = ("no ONNX", "learning rate", "a gate's threshold", "a line of a stage's code")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(change, id=change.name, marks=[] if change.name in IN_THE_GATE else [pytest.mark.heavy])
        for change in CHANGES
    ],
)
def test_an_edit_runs_what_depends_on_it_and_no_more(change, ran, table):
    change.make(ran)
    assert change.named in ran.tunewright("why").stdout
    ran.forget_runs()
    ran.run("dvc", "repro")
    table.append(f"| {change.name} | `{change.named}` | {', '.join(sorted(ran.ran(), key=ORDER.index))} |")
    assert ran.ran() == change.expected
    if change.then is not None:
        change.then(ran)


def test_the_table_of_the_docs_is_what_was_seen(table):
    page = (REPOSITORY / "docs/what-runs-again.md").read_text(encoding="utf-8").splitlines()
    missing = [row for row in table if row not in page]
    assert not missing, "docs/what-runs-again.md lacks:\n" + "\n".join(missing)


def test_an_edit_taken_back_is_restored_from_the_cache(ran):
    set_param("verdict", min_metrics={"accuracy": 0.1})(ran)  # as it was before the edit of the threshold
    ran.forget_runs()
    printed = ran.tunewright("run").stdout
    assert "restored" in printed
    assert not ran.ran() & {"finetune", "evaluate", "verdict"}


class TestClosedGates:
    """A gate that closes stops what it guards, in all three ways of running, and keeps the last good export."""

    @pytest.fixture(scope="class")
    def closed(self, ran: Project) -> Iterator[tuple[Project, str]]:
        good = sha256_tree(ran.root / "models/export")
        set_param("verdict", min_metrics={"accuracy": 0.999, "macro_f1": 0.998})(ran)
        yield ran, good
        set_param("verdict", min_metrics={"accuracy": 0.1})(ran)

    def test_dvc_repro_stops_and_the_page_tells_why(self, closed):
        project, good = closed
        found = project.run("dvc", "repro", check=False)
        assert found.returncode != 0
        for rule in ("verdict.min_metrics.accuracy", "verdict.min_metrics.macro_f1"):
            assert rule in found.stderr + found.stdout
        assert "Traceback" not in found.stderr
        assert read_json(project.root / ".tunewright/runs/gate_model.json")["outcome"] == "gate_closed"
        assert read_json(project.root / "reports/verdict.json")["open"] is False
        page = (project.root / "reports/report.html").read_text(encoding="utf-8").replace("<wbr>", "")
        assert "The gate is closed" in page and "verdict.min_metrics.accuracy" in page
        assert not (project.root / "reports/model.passed").exists()
        assert sha256_tree(project.root / "models/export") == good

    def test_dvc_repro_of_export_alone_refuses(self, closed):
        project, good = closed
        found = project.run("dvc", "repro", "-s", "export", check=False)
        assert found.returncode != 0
        assert "failed to reproduce 'export'" in found.stderr and "reports/model.passed" in found.stderr
        assert sha256_tree(project.root / "models/export") == good

    def test_a_pass_for_another_model_is_refused(self, closed):
        project, good = closed
        (project.root / "reports/model.passed").write_text('{"model": "0123", "verdict": "4567"}')
        try:
            found = project.stage("export", check=False)
        finally:
            (project.root / "reports/model.passed").unlink()
        assert found.returncode == 3
        assert "passed another model" in found.stderr
        assert sha256_tree(project.root / "models/export") == good

    def test_the_flow_fails_with_an_exit_status_of_its_own(self, closed):
        project, good = closed
        found = project.tunewright("run", check=False)
        assert found.returncode == 3
        assert "verdict.min_metrics.accuracy" in found.stdout and "Traceback" not in found.stdout + found.stderr
        assert sha256_tree(project.root / "models/export") == good


class TestBadInput:
    """A user's mistake: one clear message, a status of its own, nothing half-written. Each in a project of its own."""

    def refused(self, project: Project, *named: str) -> None:
        found = project.tunewright("run", check=False)
        printed = " ".join((found.stdout + found.stderr).split())
        assert found.returncode == 2, printed
        for name in named:
            assert name in printed
        assert "Traceback" not in printed
        done = {stage for stage in project.ran() if read_json(project.run_file(stage))["outcome"] == "ran"}
        assert done <= {"fetch_data", "fetch_model"}  # which do not look at the data
        left = project.run("git", "status", "--porcelain", "--untracked-files=all", "--ignored").stdout
        assert "~" not in left

    def test_a_file_that_is_not_there_a_column_that_is_not_there_and_an_empty_file(self, project):
        source = {"path": "movie_reviews.tsv", "text_column": "text"}
        for wrong, named in (
            ({"path": "reviews.tsv"}, ["data/raw/movie_reviews/reviews.tsv"]),
            ({"text_column": "txt"}, ["movie_reviews.tsv", "'txt'", "text"]),
        ):
            project.edit(lambda params, now=source | wrong: params["ingest"]["sources"][0].update(now))
            self.refused(project, *named)
        project.edit(lambda params: params["ingest"]["sources"][0].update(source))
        (project.root / "data/raw/movie_reviews/movie_reviews.tsv").write_bytes(b"")
        self.refused(project, "movie_reviews.tsv", "no row")

    def test_a_mistyped_key(self, project):
        edit_text("params.yaml", "  learning_rate:", "  learning_rat:")(project)
        self.refused(project, "finetune.learning_rat", "Did you mean `learning_rate`?")

    def test_a_model_of_pickled_weights_alone(self, project):
        (project.root / "models/tiny/model.safetensors").rename(project.root / "models/tiny/pytorch_model.bin")
        found = project.run("dvc", "repro", "fetch_model", check=False)
        assert found.returncode != 0
        assert "pytorch_model.bin" in found.stderr + found.stdout
        assert "Traceback" not in found.stderr + found.stdout
        assert not (project.root / "models/fetched").exists()
        assert read_json(project.run_file("fetch_model"))["outcome"] == "bad_input"


def test_null_labels_close_the_data_gate_before_anything_is_tokenized(project):
    path = project.root / "data/raw/movie_reviews/movie_reviews.tsv"
    path.write_bytes(path.read_bytes().replace(b"\t2.26666666667\t", b"\t\t", 1))
    found = project.run("dvc", "repro", "tokenize", check=False)
    assert found.returncode != 0
    assert read_json(project.run_file("gate_data"))["outcome"] == "gate_closed"
    assert "expect_column_values_to_not_be_null of label" in found.stderr + found.stdout
    assert "tokenize" not in project.ran()
