"""A toy project: four trivial stages with real git, DVC and Prefect, so that the flow itself is what is tested.

one ──▶ two ──▶ last
        side ──▶ last
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from flows.server import Server
from tests.processes import at_work_in, free_port
from tunewright.params import PathsParams

REPOSITORY = Path(__file__).parents[2]

STAGE = """
from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tunewright.errors import GateClosed, Unreachable, UserError
from tunewright.files import write_text
from tunewright.params import Section
from tunewright.report import Report
from tunewright.stage import Dep, Out, Paths, run_stage


class {camel}Params(Section):
    text: str
    mode: str


class {camel}Paths(Paths):
{fields}


class {camel}Report(Report):
    length: int


def run(paths: {camel}Paths, params: {camel}Params) -> {camel}Report:
    with Path(".tunewright/executed").open("a") as stream:
        stream.write("{name}\\n")
    print("{name} says", params.text, flush=True)
    if params.mode == "bad":
        raise UserError("row 3 is not what was expected")
    if params.mode == "gate":
        raise GateClosed("the gate is closed by 1 rule")
    if params.mode == "crash":
        raise RuntimeError("a defect")
    if params.mode == "away" and Path(".tunewright/executed").read_text().count("{name}") < 3:
        raise Unreachable("the hub did not answer")
    if params.mode == "hungry":
        bytearray(1 << 46)
    if params.mode == "hold":
        Path(".tunewright/holding").write_text(str(os.getpid()))
        while not Path(".tunewright/go").exists():
            time.sleep(0.05)
    if params.mode == "meet":  # the other stage must be at work at the same time
        Path(".tunewright/here_{name}").touch()
        deadline = time.monotonic() + 60
        while len(list(Path(".tunewright").glob("here_*"))) < 2:
            if time.monotonic() > deadline:
                raise UserError("nobody came")
            time.sleep(0.05)
    if params.mode == "sleep":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])  # a grandchild, as a data loader is
        Path(".tunewright/asleep").write_text(str(os.getpid()))
        time.sleep(600)
    read = "+".join(Path(path).read_text() for path in ({reads}))
    if params.mode == "guard" and "spoilt" in read:  # a gate on what it reads
        raise GateClosed("the gate is closed by 1 rule")
    write_text(paths.{out}, f"{name}({{params.text}},{{read}})")
    return {camel}Report(length=len(read))


if __name__ == "__main__":
    run_stage(run)
"""

# name: what it reads, what it writes (keys of `paths`)
STAGES = {
    "one": (("raw",), "ingested"),
    "two": (("ingested",), "prepared"),
    "side": (("model_source",), "base_model"),
    "last": (("prepared", "base_model"), "tokens"),
}
PATHS = {
    **dict.fromkeys(PathsParams.model_fields, "unused"),
    "raw": "raw.txt",
    "model_source": "source.txt",
    "ingested": "out/one.txt",
    "prepared": "out/two.txt",
    "base_model": "out/side.txt",
    "tokens": "out/last.txt",
    "reports": "reports",
}


def environment(**more: str) -> dict[str, str]:
    """This interpreter's programs first, nobody's Prefect, no telemetry."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "TUNEWRIGHT_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "PATH": path, "DO_NOT_TRACK": "1", "DVC_NO_ANALYTICS": "1", "COLUMNS": "200", **more}


@dataclass(frozen=True)
class Served:
    """`tunewright serve`: its process, and the address of its page."""

    process: subprocess.Popen[str]
    page: str

    @property
    def api_url(self) -> str:
        """Where its API is asked."""
        return f"{self.page}/api"

    def ask(self, path: str, **body: Any) -> Any:
        """Ask its server."""
        return _ask(self.api_url, path, **body)

    def start(self, deployment: str, **parameters: Any) -> str:
        """Have the worker run a deployment, FLOW/NAME, with these parameters; the id of the flow run."""
        path = f"/deployments/{self.ask(f'/deployments/name/{deployment}')['id']}/create_flow_run"
        return str(self.ask(path, parameters=parameters)["id"])

    def ended(self, run: str, limit_seconds: float = 600) -> Any:
        """The flow run of that id, once it has ended."""

        def found() -> Any:
            told = self.ask(f"/flow_runs/{run}")
            return told if told["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

        return _wait_for(found, limit_seconds)

    def run(self, deployment: str, **parameters: Any) -> Any:
        """Have the worker run a deployment; the flow run, once it has ended."""
        return self.ended(self.start(deployment, **parameters))


@dataclass(frozen=True)
class Toy:
    """The toy project, in its folder."""

    folder: Path
    api_url: str = ""

    def sh(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the project's folder."""
        return subprocess.run(
            command, cwd=self.folder, env=self.environment(), capture_output=True, text=True, check=False, timeout=400
        )

    def environment(self) -> dict[str, str]:
        """Of every process that works on the project."""
        return environment(PREFECT_API_URL=self.api_url) if self.api_url else environment()

    def tunewright(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command line, to its end."""
        return self.sh(sys.executable, "-m", "flows.cli", *arguments)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the command line; the test ends it."""
        return subprocess.Popen(
            [sys.executable, "-m", "flows.cli", *arguments],
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @contextmanager
    def served(self, deployed: bool = True) -> Iterator[Served]:
        """`tunewright serve` at work while the block lasts, and by default everything deployed."""
        port = free_port()
        serving = self.start("serve", "--port", str(port))
        try:
            _wait_for((self.folder / ".tunewright" / "server.json").exists, 600)
            if deployed:
                done = self.tunewright("deploy")
                assert done.returncode == 0, done.stdout + done.stderr
            yield Served(serving, f"http://127.0.0.1:{port}")
        finally:
            serving.send_signal(signal.SIGTERM)
            output, _ = serving.communicate(timeout=300)
        assert serving.returncode != 0, output
        assert self.survivors() == []

    def add_flows(self) -> None:
        """Put into the project what deployments run."""
        shutil.copy(REPOSITORY / "prefect.yaml", self.folder)
        shutil.copytree(REPOSITORY / "flows", self.folder / "flows", ignore=shutil.ignore_patterns("__pycache__"))

    def commit_with_flows(self, *before: list[str]) -> None:
        """Put what deployments run into the project, and all of it into git; `before`: commands just before that."""
        self.add_flows()
        (self.folder / ".gitignore").write_text(".tunewright/\n__pycache__/\nreports/\nout/\n")
        for command in (
            *before,
            ["git", "config", "user.name", "test"],
            ["git", "config", "user.email", "test@example.com"],
            ["git", "add", "--all"],
            ["git", "commit", "--quiet", "--message", "The project"],
        ):
            done = self.sh(*command)
            assert done.returncode == 0, done.stdout + done.stderr

    def set(self, dotted: str, value: Any) -> None:
        """Set one key of params.yaml."""
        path = self.folder / "params.yaml"
        yaml = YAML()
        params = yaml.load(path)
        *sections, key = dotted.split(".")
        place = params
        for section in sections:
            place = place[section]
        place[key] = value
        yaml.dump(params, path)

    def flow(self, code: str) -> subprocess.CompletedProcess[str]:
        """Run Python code that has the flow's module as `flow`, in a process of its own."""
        return self.sh(sys.executable, "-c", f"from flows import reproduce as flow\n{code}")

    def ask(self, path: str, **body: Any) -> Any:
        """Ask Prefect's server."""
        return _ask(self.api_url, path, **body)

    def states(self) -> dict[str, str]:
        """The state that Prefect shows of each stage in the latest flow run of this project."""
        runs = self.ask("/task_runs/filter", flow_runs={"id": {"any_": [self.flow_run()["id"]]}})
        return {run["name"]: run["state_name"] for run in runs}

    def flow_run(self) -> Any:
        """The latest flow run that Prefect shows."""
        return self.ask("/flow_runs/filter", sort="START_TIME_DESC", limit=1)[0]

    def ended(self) -> dict[str, str]:
        """How each stage ended, as the flow left it."""
        told = json.loads((self.folder / ".tunewright" / "reproduce.json").read_text())
        return {stage["stage"]: stage["state"] for stage in told["stages"]}

    def executed(self) -> list[str]:
        """The stages whose code ran since the last call, sorted."""
        path = self.folder / ".tunewright" / "executed"
        names = path.read_text().split() if path.exists() else []
        path.unlink(missing_ok=True)
        return sorted(names)

    def lock(self) -> dict[str, Any]:
        """dvc.lock, parsed."""
        parsed: dict[str, Any] = YAML(typ="safe").load(self.folder / "dvc.lock")
        return parsed

    def survivors(self) -> list[str]:
        """Living processes whose working folder is this project, without the test's own: number and command."""
        return [
            f"{process.pid} {command}"
            for process, place, command in at_work_in(self.folder)
            if place == self.folder and process.pid != os.getpid()
        ]


def _ask(api_url: str, path: str, **body: Any) -> Any:
    """Ask Prefect's server: POST where there is a body, GET where there is none."""
    request = urllib.request.Request(  # noqa: S310
        f"{api_url}{path}",
        data=json.dumps(body).encode() if body else None,
        headers={"Content-Type": "application/json"},
    )
    for attempt in range(10):
        try:
            with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
                return json.load(response)
        except urllib.error.HTTPError as error:
            if error.code != 503 or attempt == 9:  # 503: its SQLite is busy; Prefect's own clients ask again too
                raise
            time.sleep(1)
    raise AssertionError("unreachable")


def _wait_for(what: Callable[[], Any], limit_seconds: float = 60) -> Any:
    """Wait until something is true, and give it."""
    deadline = time.monotonic() + limit_seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.1)
    return found


def make_toy(folder: Path, api_url: str = "") -> Toy:
    """Write the toy project."""
    (folder / "stages").mkdir(parents=True)
    (folder / "stages" / "__init__.py").touch()
    (folder / ".gitignore").write_text(".tunewright/\n__pycache__/\n")
    (folder / ".dvcignore").write_text(".tunewright/\n__pycache__/\n")
    (folder / "raw.txt").write_text("raw")
    (folder / "source.txt").write_text("source")
    stages: dict[str, Any] = {}
    params: dict[str, Any] = {
        "seed": 1,
        "num_threads": 1,
        "task": {"type": "text_classification", "labels": ["no", "yes"]},
        "paths": PATHS,
    }
    for name, (reads, out) in STAGES.items():
        fields = [f"    {key}: Dep" for key in reads] + [f"    {out}: Out"]
        code = STAGE.format(
            name=name,
            camel=name.capitalize(),
            fields="\n".join(fields),
            reads="".join(f"paths.{key}, " for key in reads),
            out=out,
        )
        (folder / "stages" / f"{name}.py").write_text(code)
        stages[name] = {
            "cmd": f"python -m stages.{name}",
            "deps": [*(f"${{paths.{key}}}" for key in reads), f"stages/{name}.py"],
            "params": [name],
            "outs": [f"${{paths.{out}}}", f"${{paths.reports}}/{name}.json"],
        }
        params[name] = {"text": "hello", "mode": "ok"}
    yaml = YAML()
    yaml.dump({"stages": stages}, folder / "dvc.yaml")
    yaml.dump(params, folder / "params.yaml")
    toy = Toy(folder, api_url)
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        done = toy.sh(*command)
        assert done.returncode == 0, done.stderr
    config = folder / ".dvc" / "config"
    config.write_text("[core]\n    analytics = false\n    check_update = false\n")
    return toy


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real Prefect server, one for the session."""
    here = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("prefect"))
    server = Server(one_run=False)
    os.chdir(here)
    try:
        server.wait()
        yield server.api_url
    finally:
        server.stop()


@pytest.fixture
def new_toy(tmp_path: Path, prefect_server: str) -> Callable[[str], Toy]:
    """Make a toy project of that name, which uses the session's server."""
    return lambda name: make_toy(tmp_path / name, prefect_server)


@pytest.fixture
def toy(new_toy: Callable[[str], Toy]) -> Toy:
    """A toy project that has not run yet."""
    return new_toy("toy")


@pytest.fixture
def toy_alone(tmp_path: Path) -> Toy:
    """A toy project that knows no server."""
    return make_toy(tmp_path / "toy")


@pytest.fixture
def ask() -> Callable[..., Any]:
    """Ask any of Prefect's servers: (api_url, path, **body)."""
    return _ask


@pytest.fixture
def wait_for() -> Callable[..., Any]:
    """Wait until something is true, at most a given number of seconds."""
    return _wait_for
