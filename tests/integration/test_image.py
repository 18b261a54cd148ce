"""deploy/Containerfile without a container: what it names is there, and its steps make what answers.

No image is built here. Its COPY, RUN and ENV lines are carried out in a folder in place of the root of an image, with
an environment of its own in place of the image's Python, and its ENTRYPOINT is started there.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

from flows.onnx_model import OnnxModel
from tests.conftest import REPOSITORY, environment
from tests.exported import export
from tests.processes import serving
from tunewright.errors import EXIT_STOPPED
from tunewright.files import sha256_tree
from tunewright.params import Params, load_params

CONTAINERFILE = REPOSITORY / "deploy/Containerfile"
PORT = "8000"
TOKEN = "a-long-random-text"  # noqa: S105


def instructions() -> list[tuple[str, str]]:
    """The lines of the Containerfile: instruction and arguments."""
    text = CONTAINERFILE.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


def only(name: str) -> str:
    """The arguments of an instruction that stands once."""
    (found,) = [arguments for instruction, arguments in instructions() if instruction == name]
    return found


def copied() -> Iterator[tuple[str, PurePosixPath]]:
    """Each source of COPY, and where it comes to stand."""
    for instruction, arguments in instructions():
        if instruction == "COPY":
            *sources, target = arguments.split()
            for source in sources:
                inside = target.endswith("/")
                yield source, PurePosixPath(target, PurePosixPath(source).name) if inside else PurePosixPath(target)


def let_through(name: str) -> bool:
    """Whether the ignore file leaves a path in: of its patterns the last one that fits counts, also one of a folder
    that the path lies in, as both Docker and Podman have it."""
    kept = True
    paths = [str(path) for path in (PurePosixPath(name), *PurePosixPath(name).parents) if str(path) != "."]
    for line in (REPOSITORY / "deploy/Containerfile.dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!").removeprefix("**/")
            deep = "**/" in line
            if any(fnmatch.fnmatch(PurePosixPath(path).name if deep else path, pattern) for path in paths):
                kept = line.startswith("!")
    return kept


def test_what_the_image_copies_is_there_and_nothing_else_reaches_its_build() -> None:
    sources = [source for source, _ in copied()]
    assert "flows" in sources and "requirements/serve.txt" in sources
    for source in sources:
        assert (REPOSITORY / source).exists(), source
        assert let_through(source), f"{source}: left out by deploy/Containerfile.dockerignore"
    for name in (".dvc/config.local", ".env", ".git/config", "params.yaml", "models/export/model.onnx", "data/raw"):
        assert not let_through(name), name
    assert let_through("flows/cli.py") and not let_through("flows/__pycache__/cli.pyc")
    secret = (REPOSITORY / "deploy/Dockerfile.dockerignore").read_text().splitlines()
    assert {".dvc/config.local", ".env", ".tunewright"} <= set(secret)


def test_the_image_has_a_pinned_base_no_root_no_secret_and_a_check_of_its_health() -> None:
    assert re.fullmatch(r"python:3\.\d+-slim", only("FROM"))
    user = only("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    names = [name for name, _ in instructions()]
    assert names.index("USER") > max(at for at, name in enumerate(names) if name in ("RUN", "COPY"))
    assert not {"ARG", "ADD", "VOLUME"} & set(names)
    assert not [
        arguments for name, arguments in instructions() if name == "ENV" and re.search("TOKEN|KEY|PASS", arguments)
    ]
    entry = json.loads(only("ENTRYPOINT"))
    assert (
        f"127.0.0.1:{PORT}/health" in only("HEALTHCHECK") and entry[-2:] == ["--port", PORT] and only("EXPOSE") == PORT
    )
    runs = " ".join(arguments for name, arguments in instructions() if name == "RUN")
    installed = re.findall(r"/opt/tunewright/(requirements/\S+)", runs)
    assert installed == ["requirements/constraints.txt", "requirements/serve.txt"]
    assert set(installed) <= {source for source, _ in copied()}


AS_IN_THE_IMAGE = """
import runpy, sys

class Absent:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in absent:
            raise ModuleNotFoundError(f"No module named {name!r}: it is not in the image", name=name)

absent = set(sys.argv.pop(1).split(","))
sys.meta_path.insert(0, Absent)
runpy.run_module("flows.cli", run_name="__main__", alter_sys=True)
"""


def needed(requirements: Path) -> set[str]:
    """The distributions of a file of requirements and all that they need, as they stand in this environment."""
    names = [line.partition("==")[0] for line in requirements.read_text().splitlines() if not line.startswith("#")]
    found: set[str] = set()
    while names:
        name = canonicalize_name(names.pop())
        if name not in found:
            found.add(name)
            asked = [Requirement(line) for line in metadata.requires(name) or []]
            names += [one.name for one in asked if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


def test_the_service_imports_nothing_that_the_image_lacks(tmp_path: Path, tiny_model: Path) -> None:
    served(tmp_path, tiny_model)
    there = needed(REPOSITORY / "requirements/serve.txt") | {"tunewright"}
    absent = [
        name
        for name, distributions in metadata.packages_distributions().items()
        if not there & {canonicalize_name(one) for one in distributions}
    ]
    assert {"torch", "transformers", "dvc", "prefect", "psutil"} <= set(absent)
    command = [sys.executable, "-c", AS_IN_THE_IMAGE, ",".join(absent)]
    options = ["serve-model", "--model", str(tmp_path / "model"), "--port", "0"]
    env = environment() | {"PYTHONPATH": str(REPOSITORY)}
    with serving([*command, *options], cwd=tmp_path, env=env) as (address, process):
        (answer,) = ask(f"{address.rstrip('/')}/predict", ["A fine film."], None)
        assert answer["error"] is None
    assert process.returncode == EXIT_STOPPED  # a signal is an ordinary end there too


def served(folder: Path, base: Path) -> Params:
    """Lay out what the image is to serve, as docs/serving.md says: the model, and the params that it was made by."""
    params = YAML(typ="safe").load(REPOSITORY / "params.yaml")
    params["tokenize"]["max_length"] = 32
    YAML(typ="safe").dump(params, folder / "params.yaml")
    made_by = load_params(folder / "params.yaml")
    export(folder / "model", base, made_by, onnx=True, control={"temperature": 2.0, "abstain_below": 0.5001})
    return made_by


def ask(url: str, texts: list[str], token: str | None) -> Any:
    headers = {"Content-Type": "application/json"} | ({} if token is None else {"Authorization": f"Bearer {token}"})
    request = urllib.request.Request(url, json.dumps({"texts": texts}).encode(), headers)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return json.loads(answer.read())["answers"]
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.heavy
@pytest.mark.timeout(1500)
def test_the_steps_of_the_image_make_what_answers_without_pytorch(tmp_path: Path, tiny_model: Path) -> None:
    root = tmp_path / "image"
    here = lambda text: text.replace("/opt/", f"{root}/opt/").replace("/served", f"{root}/served")  # noqa: E731
    for source, target in copied():
        place = root / target.relative_to("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        ignored = shutil.ignore_patterns("__pycache__")
        found = REPOSITORY / source
        shutil.copytree(found, place, ignore=ignored) if found.is_dir() else shutil.copy(found, place)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "python")], check=True)
    python = str(tmp_path / "python/bin/python")
    for name, line in instructions():
        if name == "RUN":
            run = [python if word == "python" else here(word) for word in shlex.split(line)]
            subprocess.run(run, cwd=root, check=True, capture_output=True, timeout=1200)
    listed = subprocess.run([python, "-m", "pip", "list", "--format", "json"], check=True, capture_output=True).stdout
    packages = {package["name"].lower() for package in json.loads(listed)}
    assert not packages & {"torch", "transformers", "dvc", "prefect", "pandas", "pyarrow", "scikit-learn"}, packages

    folder = root / "served"
    folder.mkdir()
    made_by = served(folder, tiny_model)
    before = sha256_tree(folder)

    env = dict(word.split("=", 1) for name, line in instructions() if name == "ENV" for word in here(line).split())
    env |= {"PATH": os.defpath, "TUNEWRIGHT_SERVE_TOKEN": TOKEN, "COLUMNS": "400"}
    entry = [python if word == "python" else here(word) for word in json.loads(only("ENTRYPOINT"))]
    texts = ["A fine film.", "", "call +1 415 555 2671", f"the key ghp_{'a1B2' * 9}"]
    with serving(["0" if word == PORT else word for word in entry], cwd=folder, env=env) as (address, _):
        port = address.rpartition(":")[2]
        check = json.loads(only("HEALTHCHECK").partition(" CMD ")[2].replace(f":{PORT}/", f":{port}/"))
        subprocess.run([python, *check[1:]], env={"PATH": os.defpath}, check=True, timeout=60)
        url = f"http://127.0.0.1:{port}/predict"
        assert ask(url, texts, None) == ask(url, texts, "wrong") == 401
        answers = ask(url, texts, TOKEN)
    model = OnnxModel(folder / "model", made_by)
    for answer, expected in zip(answers, model.answers(texts), strict=True):
        assert answer["error"] == expected.error and answer["predicted"] == expected.predicted
        assert answer["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)
    assert sha256_tree(folder) == before
