"""The graph and the reasons, on small real DVC projects; and DVC's own faults, each with the command that mends it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flows.graph import NEVER_RAN, Node, changes, followers, graph, plan
from tunewright.errors import UserError

DVC_YAML = """\
stages:
  upper:
    cmd: tr a-z A-Z < raw.txt > upper.txt
    deps: [raw.txt]
    params: [upper]
    outs: [upper.txt]
  count:
    cmd: wc -c < upper.txt > count.txt
    deps: [upper.txt]
    outs: [count.txt]
  alone:
    cmd: echo alone > alone.txt
    params: [alone]
    outs: [alone.txt]
"""


def dvc(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of three stages that has run; tests work on copies."""
    folder = tmp_path_factory.mktemp("made") / "project"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        subprocess.run(["git", "init", "-q"], check=True)
        dvc("init", "-q")
        Path("raw.txt").write_text("raw")
        Path("params.yaml").write_text("upper: {rate: 1e-4, names: [a, b]}\nalone: 1\n")
        Path("dvc.yaml").write_text(DVC_YAML)
        dvc("repro", "-q")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the working folder."""
    copied = shutil.copytree(made, tmp_path / "project", symlinks=True)
    monkeypatch.chdir(copied)
    return copied


def test_nodes_come_after_their_upstreams(folder: Path) -> None:
    nodes = graph()
    assert [node.name for node in nodes] == ["alone", "upper", "count"]
    assert nodes[2] == Node(
        name="count",
        cmd="wc -c < upper.txt > count.txt",
        deps=("upper.txt",),
        outs=("count.txt",),
        upstreams=("upper",),
    )


def test_reasons_name_the_very_file_and_param(folder: Path) -> None:
    assert changes() == {}

    Path("params.yaml").write_text("upper: {rate: 2e-4, names: [a, c]}\nalone: 1\n")
    nodes, changed = plan()
    assert changed == {
        "upper": ("params.yaml: upper.names[1] 'b' → 'c'", "params.yaml: upper.rate 0.0001 → 0.0002"),
    }
    assert followers(nodes, changed) == {"count": ("upper",)}

    Path("raw.txt").write_text("other")
    Path("alone.txt").unlink()
    Path("dvc.yaml").write_text(DVC_YAML.replace("wc -c", "wc -l"))
    changed = changes()
    assert changed["upper"][0] == "raw.txt changed"
    assert changed["alone"] == ("alone.txt is missing",)
    assert changed["count"] == ("its command in dvc.yaml changed",)
    assert changes("alone") == {"alone": ("alone.txt is missing",)}


def test_a_stage_that_never_ran_says_just_that(folder: Path) -> None:
    Path("dvc.lock").unlink()
    assert changes() == dict.fromkeys(["alone", "upper", "count"], (NEVER_RAN,))


def test_a_changed_folder_names_its_files(folder: Path) -> None:
    Path("in").mkdir()
    for name in ("a.csv", "b.csv"):
        Path("in", name).write_text(name)
    Path("dvc.yaml").write_text("stages: {read: {cmd: ls in > read.txt, deps: [in], outs: [read.txt]}}")
    dvc("repro", "-q")
    who = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    subprocess.run(["git", "add", "in", "dvc.yaml", "dvc.lock"], check=True)
    subprocess.run(["git", *who, "commit", "-q", "-m", "ran"], check=True)
    Path("in", "b.csv").write_text("other")
    Path("in", "c.csv").write_text("new")
    assert changes() == {"read": ("in changed (in/b.csv, in/c.csv)",)}


def test_followers_reach_down_the_whole_graph() -> None:
    nodes = [
        Node("a", "", (), (), ()),
        Node("b", "", (), (), ("a",)),
        Node("c", "", (), (), ("b",)),
        Node("d", "", (), (), ()),
    ]
    assert followers(nodes, {"a": ("x changed",)}) == {"b": ("a",), "c": ("b",)}


@pytest.mark.parametrize(
    ("break_it", "message", "mend"),
    [
        (lambda: Path("dvc.yaml").unlink(), "dvc.yaml: not found", "Run from the project's folder"),
        (lambda: Path("dvc.yaml").write_text("stages: ["), "dvc.yaml", "git diff dvc.yaml"),
        (lambda: Path("dvc.yaml").write_text("stages: {a: {cmd: x, depps: [y]}}"), "depps", "git diff dvc.yaml"),
        (lambda: Path("dvc.yaml").write_text("stages: {a: {cmd: '${nope}'}}"), "nope", "git diff dvc.yaml"),
        (lambda: Path("dvc.lock").write_text("schema: '2.0'\nstages: {"), "dvc.lock", "tunewright repair"),
        (lambda: Path("dvc.lock").write_text("<<<<<<< HEAD\n=======\n"), "dvc.lock", "tunewright repair"),
        (lambda: Path(".dvc").rename("gone"), "DVC", "git init && dvc init"),
        (lambda: Path(".git").rename("gone"), "git", "git init"),
        (lambda: Path(".dvc/tmp/rwlock").write_text("{"), "rwlock", "tunewright repair"),
    ],
    ids=["no dvc.yaml", "yaml", "key", "template", "lock cut off", "lock in conflict", "no dvc", "no git", "rwlock"],
)
def test_what_dvc_cannot_read_is_told_with_what_mends_it(
    folder: Path, break_it: object, message: str, mend: str
) -> None:
    break_it()  # type: ignore[operator]
    with pytest.raises(UserError) as caught:
        changes()
    assert message in str(caught.value) and mend in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_killed_holder_that_is_not_reaped_yet_is_waited_for(folder: Path) -> None:
    # Its parent, this process, has not waited for it: a zombie, which DVC takes for a live holder of its lock.
    holder = subprocess.Popen(["true"])
    while Path(f"/proc/{holder.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
        pass
    held = {"write": {str(folder / "upper.txt"): {"pid": holder.pid, "cmd": "dvc repro"}}, "read": {}}
    Path(".dvc/tmp/rwlock").write_text(json.dumps(held))
    threading.Timer(1.0, holder.wait).start()
    assert [node.name for node in plan()[0]] == ["alone", "upper", "count"]
