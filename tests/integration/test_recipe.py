"""A recipe runs in a clone of its own: real git, DVC and Prefect, and nothing of the user's own is touched."""

from __future__ import annotations

import shutil

import pytest


@pytest.fixture
def toy_with_recipe(toy):
    """The toy project, with a recipe in which stage one says something else."""
    (toy.folder / ".gitignore").write_text(".tunewright/\n__pycache__/\nruns/\nout/\nreports/\n")
    (toy.folder / ".dvcignore").write_text(".tunewright/\n__pycache__/\nruns/\n")
    (toy.folder / "recipes").mkdir()
    shutil.copyfile(toy.folder / "params.yaml", toy.folder / "recipes/greeting.yaml")
    recipe = toy.folder / "recipes/greeting.yaml"
    recipe.write_text("# Says good day.\n" + recipe.read_text().replace("hello", "good day"))
    return toy


def test_a_recipe_runs_in_its_clone_and_leaves_the_user_s_own_as_it_is(toy_with_recipe):
    toy = toy_with_recipe
    before = (toy.folder / "params.yaml").read_bytes()
    done = toy.tunewright("run", "--recipe", "greeting")
    assert done.returncode == 0, done.stdout + done.stderr
    clone = toy.folder / "runs/greeting"
    assert (clone / "out/last.txt").read_text().count("good day") == 4
    assert (toy.folder / "params.yaml").read_bytes() == before
    assert not (toy.folder / "out").exists() and not (toy.folder / "dvc.lock").exists()
    assert any((toy.folder / ".dvc/cache").rglob("*")) and not (clone / ".dvc/cache/files").exists()

    again = toy.tunewright("run", "--recipe", "greeting", "--jobs", "1")
    assert again.returncode == 0 and "Nothing to run" in again.stdout

    # What is not committed counts; what is gone is gone there too.
    (toy.folder / "raw.txt").write_text("raw, edited")
    (toy.folder / "recipes/nobody.txt").write_text("not tracked, not ignored")
    (clone / "stale.txt").write_text("of an earlier state")
    changed = toy.tunewright("run", "--recipe", "greeting")
    assert changed.returncode == 0, changed.stdout
    assert "raw, edited" in (clone / "out/one.txt").read_text()
    assert (clone / "recipes/nobody.txt").is_file() and not (clone / "stale.txt").exists()


def test_the_exit_status_is_the_run_s_own(toy_with_recipe):
    toy = toy_with_recipe
    recipe = toy.folder / "recipes/greeting.yaml"
    recipe.write_text(recipe.read_text().replace("mode: ok", "mode: gate", 1))
    assert toy.tunewright("run", "--recipe", "greeting").returncode == 3


def test_a_recipe_that_is_not_there_is_named_with_those_that_are(toy_with_recipe):
    done = toy_with_recipe.tunewright("run", "--recipe", "greting")
    assert done.returncode == 2
    assert "recipes/greting.yaml: no such recipe. There are: greeting." in done.stdout
    assert not (toy_with_recipe.folder / "runs").exists()
