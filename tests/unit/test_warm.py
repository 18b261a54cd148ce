"""The process that has DVC imported, and what it forks."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.processes import child_environment, end_dvc, end_group
from flows.warm import Warm

# A repository whose one stage sleeps until it is ended.
SLEEPER = "stages:\n  sleeper:\n    cmd: echo asleep && exec sleep 600\n"


@pytest.fixture
def warm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Warm]:
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run([*["dvc", "init", "-q"]], check=True, env=child_environment())
    (tmp_path / "dvc.yaml").write_text(SLEEPER)
    started = Warm({**child_environment(), "PYTHONPATH": str(Path(__file__).parents[2])})
    yield started
    started.close()


def test_each_command_has_its_own_output_status_and_session(warm: Warm) -> None:
    good, bad = warm.dvc("root"), warm.dvc("root", "--nonsense")
    assert os.getsid(good.pid) == good.pid != os.getsid(0)
    assert good.wait(60) == 0 and good.stdout.read() == ".\n"
    assert bad.wait(60) != 0 and "--nonsense" in bad.stdout.read()


def test_a_command_runs_in_the_folder_that_it_is_given(warm: Warm, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    inside = warm.dvc("root", folder=Path("inner"))
    assert inside.wait(60) == 0 and inside.stdout.read() == "..\n"


def test_a_limit_and_the_end_of_a_whole_group(warm: Warm) -> None:
    process = warm.dvc("repro", "sleeper")
    while process.stdout.readline() != "asleep\n":
        assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.1)
    end_dvc(process)
    assert process.poll() == 255  # DVC's own, for a stage that failed: it was not killed
    assert "failed to reproduce" in process.stdout.read()  # the stage, which held it too, is gone


def test_a_killed_command_ends_though_its_stage_lives(warm: Warm) -> None:
    process = warm.dvc("repro", "sleeper")
    while process.stdout.readline() != "asleep\n":
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    end_group(process)


def test_no_command_without_the_warm_process(warm: Warm) -> None:
    warm._process.kill()
    warm._process.wait()
    with pytest.raises(ConnectionError):
        warm.dvc("root")
