"""The command line where no flow is needed, and the summary of a run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from flows import summary
from flows.cli import app

REPOSITORY = Path(__file__).parents[2]


def test_help_groups_the_commands_by_what_a_user_wants() -> None:
    shown = CliRunner().invoke(app, ["--help"]).output
    groups = re.findall(r"╭─ (.+?) ─", shown)
    assert groups == [
        "Options",
        "Your data",
        "Run the recipe",
        "Look before you run",
        "Give it away",
        "Champion and challenger",
        "Schedules, and a page to watch runs",
    ]
    assert re.findall(
        r"^│ (init|suggest-contract|accept|run|sweep|why|plan|check|serve|deploy) ", shown, re.MULTILINE
    ) == [
        "init", "suggest-contract", "accept", "run", "sweep", "why", "plan", "check", "serve", "deploy",
    ]  # fmt: skip


def test_version_is_that_of_the_project() -> None:
    shown = CliRunner().invoke(app, ["--version"]).output
    assert f'version = "{shown.split()[1]}"' in (REPOSITORY / "pyproject.toml").read_text()


def test_outside_a_project_each_command_says_where_to_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for command, file in (("why", "dvc.yaml"), ("check", "params.yaml")):
        done = CliRunner().invoke(app, [command])
        assert done.exit_code == 2
        assert done.output.split() == (
            f"{file}: not found. Run from the project's folder, the one that holds {file}.".split()
        )


def test_check_imports_nothing_heavy() -> None:
    code = (
        "import sys; from flows.check import faults; faults(); "
        "print(sorted({'torch', 'transformers', 'pandas', 'numpy', 'sklearn', 'prefect', 'dvc', 'pyarrow', "
        "'great_expectations', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_summary_tells_the_verdict_and_the_margin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_bytes((REPOSITORY / "params.yaml").read_bytes())
    reports = tmp_path / "reports"
    reports.mkdir()
    console = Console(record=True, width=200)
    summary.success(console)
    assert console.export_text() == ""  # nothing is there to be told

    metric = {"value": 0.87125, "low": 0.85, "high": 0.89}
    files = {
        "verdict.json": {"open": True, "findings": [{"verdict": "pass"}, {"verdict": "pass"}, {"verdict": "warn"}]},
        "evaluate.json": {
            "metric": "accuracy",
            "splits": {"test": {"rows": 1200, "metrics": {"accuracy": metric}}},
            "margin_over_baseline": {"value": 0.03, "low": 0.01, "high": 0.05},
        },
        "baseline.json": {"splits": {"test": {"metrics": {"accuracy": {"value": 0.8412}}}}},
        "evaluate_base.json": {"applies": False, "splits": {}},
    }
    for name, content in files.items():
        (reports / name).write_text(json.dumps(content))
    (reports / "report.html").touch()
    summary.success(console)
    assert console.export_text().strip().splitlines() == [
        "verdict open (2 pass, 1 warn)",
        "test    accuracy 0.8712 (0.8500 to 0.8900) on 1200 rows; baseline 0.8412; margin +0.0300 (+0.0100 to +0.0500)",
        "report  reports/report.html",
        "All figures: dvc metrics show",
    ]


@pytest.mark.parametrize(
    ("states", "status"),
    [
        (["Ran", "GateClosed", "NotRun"], 3),
        (["BadInput", "GateClosed"], 2),
        (["Unreachable"], 4),
        (["TimedOut"], 1),
        (["OutOfMemory"], 1),
    ],
)
def test_the_exit_status_tells_what_failed(states: list[str], status: int) -> None:
    stages = [{"stage": f"stage{n}", "state": state, "message": f"told {n}"} for n, state in enumerate(states)]
    console = Console(record=True, width=200)
    assert summary.failure(console, stages) == status
    shown = console.export_text()
    failed = [n for n, state in enumerate(states) if state not in ("Ran", "NotRun")]
    assert re.findall(r"told (\d)", shown) == [str(n) for n in failed]


def test_counts_in_words() -> None:
    states = ["Ran", "Ran", "Restored", "Unchanged", "GateClosed", "NotRun"]
    assert summary.counted(states) == "2 ran, 1 restored from DVC's cache, 1 unchanged, 1 not run, 1 failed"
