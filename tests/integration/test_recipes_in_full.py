"""Every recipe of recipes/ as a user runs it: all its data, its real base model, its own thresholds.

Over an hour on two cores; each recipe below a quarter of one. test_recipes.py runs each in seconds, shrunken.
"""

from __future__ import annotations

import re
from importlib.util import find_spec

import pytest

from benchmarks.recipes import in_order
from tests.conftest import REPOSITORY, Project
from tunewright.files import read_json

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(7200)]
PACKAGE = re.compile(r"^  model_name_or_path: package:(\w+)", re.MULTILINE)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The repository as it stands, with a cache that all recipes share."""
    return Project.copy(tmp_path_factory.mktemp("recipes"))


@pytest.mark.parametrize("recipe", in_order([path.stem for path in (REPOSITORY / "recipes").glob("*.yaml")]))
def test_a_recipe_reaches_what_it_asks_for(recipe, project):
    package = PACKAGE.search((REPOSITORY / f"recipes/{recipe}.yaml").read_text(encoding="utf-8"))
    if package and find_spec(package[1]) is None:
        pytest.skip(f"the base model's package, {package[1]}, is not installed: `make run RECIPE={recipe}` does it")
    done = project.run("python", "-m", "flows.cli", "run", "--recipe", recipe, check=False, timeout=7000)
    assert done.returncode == 0, done.stdout[-3000:]
    clone = project.root / "runs" / recipe
    assert read_json(clone / "reports/verdict.json")["open"] is True
    assert (clone / "models/export/MANIFEST.json").is_file()
    assert {stage["state"] for stage in read_json(clone / "reports/run.json")["stages"]} <= {"Ran", "Restored"}
