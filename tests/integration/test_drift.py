"""Drift on real data: the reviews that this repository accepts, then real tweets as a second source and alone.

One project with real git and DVC goes through it all; only the stages up to `drift` run.
"""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest

from tests.conftest import Project
from tunewright import charts
from tunewright.files import read_json

TWEETS: dict[str, Any] = {
    "name": "tweets",
    "path": "tweets/tweets.tsv",
    "format": "tsv",
    "license": "MIT",
    "column_names": ["id", "rating", "text"],
    "quoting": "none",
    "id_column": "id",
    "text_column": "text",
    "label_column": "rating",
    "label_bins": [{"label": "negative", "max": -0.5}, {"label": "positive", "min": 0.5}],
}


def use_sources(*names: str):
    """Point paths.raw at the folder of all raw data, and read the sources of these names."""

    def change(params: Any) -> None:
        params["paths"]["raw"] = "data/raw"
        reviews = params["ingest"]["sources"][0]
        reviews["path"] = "movie_reviews/movie_reviews.tsv"
        known = {"movie_reviews": reviews, "tweets": TWEETS}
        params["ingest"]["sources"] = [known[name] for name in names]

    return change


def verdicts(project: Project) -> dict[str, str]:
    """What was judged, as `all rows, lengths` → verdict."""
    findings = read_json(project.root / "reports/drift.json")["findings"]
    return {finding["found"].partition(":")[0]: finding["verdict"] for finding in findings}


def accepted(project: Project) -> Any:
    return read_json(project.root / "data/accepted.json")["accepted"]


LABELS = {"new labels": "pass", "vanished labels": "pass"}
MEASURES = ("label shares", "lengths", "vocabulary")


def all_of(part: str, verdict: str) -> dict[str, str]:
    return {f"{part}, {measure}": verdict for measure in MEASURES}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The repository as it stands, its own reviews measured, committed with its dvc.lock."""
    found = Project.copy(tmp_path_factory.mktemp("drift"))
    found.run("dvc", "repro", "drift")
    return found.commit()


def test_the_accepted_data_of_this_repository_is_its_own_data(project):
    """Where this fails after a change of ingest, prepare or the profile: `dvc repro drift`, `tunewright accept`."""
    assert verdicts(project) == LABELS | all_of("all rows", "pass")
    report = read_json(project.root / "reports/drift.json")
    assert report["profile"] == accepted(project)
    assert "holds this data already" in project.tunewright("accept").stdout
    assert project.run("git", "status", "--porcelain").stdout == ""


def test_tweets_as_a_second_source_are_found_and_drawn(project):
    project.edit(use_sources("movie_reviews", "tweets"))
    project.run("dvc", "repro", "drift")
    assert verdicts(project) == {
        **LABELS,
        **all_of("all rows", "pass"),  # among three times as many reviews the tweets would go unseen
        **all_of("movie_reviews", "pass"),
        **all_of("tweets", "fail"),
        "tweets, label shares": "warn",
    }
    report = read_json(project.root / "reports/drift.json")
    assert report["comparison"]["new_sources"] == ["tweets"]
    pictures = charts.drift_pictures(report)
    assert list(pictures) == ["drift_measures", "drift_labels", "drift_lengths", "drift_words"]
    assert "tweets: vocabulary" in pictures["drift_measures"] and "fails" in pictures["drift_measures"]
    assert "Lengths of tweets" in pictures["drift_lengths"] and "film" in pictures["drift_words"]


def test_tweets_in_place_of_the_reviews_close_the_gate(project):
    project.edit(use_sources("tweets"))
    closed = project.run("dvc", "repro", "gate_data", check=False)
    assert verdicts(project) == LABELS | all_of("all rows", "fail") | {"all rows, label shares": "warn"}
    assert closed.returncode != 0
    assert "drift.psi_fail: found all rows, vocabulary: PSI 0." in closed.stderr + closed.stdout
    assert "tunewright accept" in closed.stderr + closed.stdout


def test_what_is_accepted_passes_and_stands_in_git(project):
    told = project.tunewright("accept").stdout
    rows = sum(source["rows"] for source in accepted(project)["sources"].values())
    assert list(accepted(project)["sources"]) == ["tweets"]
    assert f"data/accepted.json: {rows:,} rows accepted, from reports/drift.json" in told
    assert "git add data/accepted.json && git commit" in told
    assert "data/accepted.json" in project.run("git", "diff", "--name-only").stdout
    assert "data/accepted.json changed" in project.tunewright("why").stdout
    project.run("dvc", "repro", "drift")
    assert verdicts(project) == LABELS | all_of("all rows", "pass")
    project.commit()


def test_a_revision_s_data_can_be_accepted(project):
    told = project.tunewright("accept", "HEAD~1").stdout
    assert "rows accepted, from reports/drift.json of HEAD~1 (before: " in told
    reviews = accepted(project)["sources"]["movie_reviews"]
    assert reviews["rows"] > 9000 and reviews["common_words"]["film"] > 1000
    project.tunewright("accept", "main")
    assert project.run("git", "status", "--porcelain").stdout == ""


def test_a_revision_that_is_not_there_is_refused(project):
    refused = project.tunewright("accept", "no-such-branch", check=False)
    assert refused.returncode == 2
    assert "git knows no revision 'no-such-branch'" in refused.stdout
    assert "Traceback" not in refused.stdout + refused.stderr


def test_a_report_that_dvc_has_not_got_is_refused(project):
    before = accepted(project)
    old = project.run("git", "show", "HEAD~1:dvc.lock").stdout
    (line,) = [part for part in old.split("- path: ") if part.startswith("reports/drift.json")]
    digest = line.split("md5: ")[1].split()[0]
    (project.root / ".dvc/cache/files/md5" / digest[:2] / digest[2:]).unlink()
    refused = project.tunewright("accept", "HEAD~1", check=False)
    assert refused.returncode == 2
    assert "neither in DVC's cache nor in a remote" in refused.stdout and "dvc push" in refused.stdout
    assert "Traceback" not in refused.stdout + refused.stderr
    assert accepted(project) == before


def test_data_that_has_changed_since_is_not_accepted(project):
    project.edit(lambda params: params["prepare"].update(split_seed=7))
    refused = project.tunewright("accept", check=False)
    assert refused.returncode == 2
    assert "prepare would run again: params.yaml: prepare.split_seed 0 → 7" in refused.stdout
    project.run("dvc", "repro", "--single-item", "prepare")
    refused = project.tunewright("accept", check=False)
    assert "made of other rows than data/prepared holds" in refused.stdout


def test_before_any_run_there_is_nothing_to_accept(project):
    shutil.rmtree(project.root / "reports")
    refused = project.tunewright("accept", check=False)
    assert refused.returncode == 2
    assert "Traceback" not in refused.stdout + refused.stderr


def test_null_is_the_way_to_start_anew(project):
    (project.root / "data/accepted.json").write_text(json.dumps({"accepted": None}))
    project.run("dvc", "repro", "drift")
    assert {finding["verdict"] for finding in read_json(project.root / "reports/drift.json")["findings"]} == {
        "not_assessed"
    }
    assert "(before: none)" in project.tunewright("accept").stdout
