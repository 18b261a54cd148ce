"""What people see of a run, and what they must not see: a real server, its page in Chromium, a webhook that listens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from tests.browser import Page
from tests.integration.conftest import _ask

PLAIN = "no form that anybody knows 47"
LIVE = """
    import time
    from tunewright.stage import tell_progress
    tell_progress(0.25, "step 1/4  loss 0.5  9 s left")
    deadline = time.monotonic() + 240
    while not Path(".tunewright/seen").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    tell_progress(1.0, "trained, 4 steps", last=True)
"""
AUDIT = """
import os, sys

def _tell(host, event, file=os.environ["HOSTS_ASKED"]):
    out = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(out, f"{host}\\t{event}\\t{' '.join(sys.orig_argv)[:200]}\\n".encode())
    os.close(out)

def _hook(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto"):
        host = arguments[1] if event in ("socket.connect", "socket.sendto") else arguments[0]
        _tell(host[0] if isinstance(host, tuple) else host, event)

sys.addaudithook(_hook)
_tell("", "listens")  # a process that asks nobody is heard all the same
"""


@pytest.fixture
def hosts_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, list[str]]]:
    """Every Python process that is started from here on tells which hosts it looks up or connects to: a host, and the
    commands that asked for it."""
    folder = tmp_path / "audit"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(AUDIT)
    monkeypatch.setenv("HOSTS_ASKED", str(folder / "asked.tsv"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", str(Path.cwd()))]))

    def asked() -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for line in (folder / "asked.tsv").read_text().splitlines():
            host, event, command = line.split("\t")
            found.setdefault(host, []).append(f"{event}: {command}")
        return found

    return asked


def outside(asked: dict[str, list[str]]) -> dict[str, list[str]]:
    """Those that are neither this machine nor a socket in a folder of it."""
    here = ("None", "", "localhost", "::1")
    return {
        host: told for host, told in asked.items() if host not in here and not host.startswith(("127.", "/", "b'/"))
    }


def change(toy: Any, stage: str, old: str, new: str) -> None:
    """Change a stage's code."""
    file = toy.folder / "stages" / f"{stage}.py"
    code = file.read_text()
    assert old in code
    file.write_text(code.replace(old, new))


def latest(api_url: str, key: str) -> Any:
    """The latest artifact of that key; None while there is none."""
    found = _ask(api_url, "/artifacts/filter", artifacts={"key": {"any_": [key]}}, sort="CREATED_DESC", limit=1)
    return found[0] if found else None


def test_a_gate_blocks_what_is_below_it_and_a_stage_shows_how_far_it_is(toy: Any, wait_for: Any) -> None:
    change(toy, "one", '    print("one says"', LIVE + '    print("one says"')
    toy.set("two.mode", "gate")
    run = toy.start("run")
    try:
        artifact = wait_for(lambda: latest(toy.api_url, "one-progress"), 240)
        assert artifact["type"] == "progress" and artifact["data"] == 25.0
        assert artifact["description"] == "step 1/4  loss 0.5  9 s left"
    finally:
        (toy.folder / ".tunewright" / "seen").touch()
        output, _ = run.communicate(timeout=300)
    assert run.returncode == 3, output
    ended = {"one": "Ran", "side": "Ran", "two": "GateClosed", "last": "Blocked"}
    assert toy.ended() == ended
    assert toy.states() == {**ended, "one": "Completed", "side": "Completed"}
    assert "two above is closed" in output and "2 ran, 1 blocked by a gate, 1 failed" in output
    flow_run = toy.flow_run()
    assert (flow_run["state_type"], flow_run["state_name"]) == ("FAILED", "GateClosed")
    assert flow_run["state"]["message"] == "two: the gate is closed by 1 rule"

    # The edges of the graph are drawn, whichever way a stage ended.
    nodes = [node for _, node in toy.ask(f"/flow_runs/{flow_run['id']}/graph-v2")["nodes"]]
    names = {node["id"]: node["label"] for node in nodes if node["kind"] == "task-run"}
    edges = {node["label"]: sorted({names[parent["id"]] for parent in node["parents"]}) for node in nodes}
    assert edges == {"one": [], "side": [], "two": ["one"], "last": ["side", "two"]}

    same, summary = latest(toy.api_url, "one-progress"), latest(toy.api_url, "reproduce-summary")["data"]
    assert same["id"] == artifact["id"] and same["data"] == 100.0 and same["description"] == "trained, 4 steps"
    assert summary.startswith("# A gate is closed: two") and "    the gate is closed by 1 rule" in summary
    rows = json.loads(latest(toy.api_url, "reproduce-stages")["data"])
    assert {row["stage"]: row["state"] for row in rows} == ended


def test_a_run_tells_no_secret_and_asks_no_other_host(
    toy_alone: Any, monkeypatch: pytest.MonkeyPatch, hosts_asked: Callable[[], dict[str, list[str]]]
) -> None:
    toy = toy_alone
    monkeypatch.setenv("TEAM_API_TOKEN", PLAIN)
    told = 'os.environ["TEAM_API_TOKEN"]'
    change(toy, "one", '    print("one says"', f'    print("sent with", {told}, flush=True)\n    print("one says"')
    change(toy, "side", '    print("side says"', f'    raise UserError("refused: " + {told})\n    print("side says"')
    change(toy, "two", '    print("two says"', f'    raise RuntimeError({told})\n    print("two says"')
    done = toy.tunewright("run")
    assert done.returncode != 0
    assert toy.ended() == {"one": "Ran", "side": "BadInput", "two": "Failed", "last": "NotRun"}

    assert PLAIN not in done.stdout + done.stderr
    assert "sent with [TEAM_API_TOKEN]" in done.stdout and "refused: [TEAM_API_TOKEN]" in done.stdout
    files = [path for path in toy.folder.rglob("*") if path.is_file()]
    database = [path for path in files if path.name.startswith("prefect.db")]
    # Prefect keeps the states, the logs and the artifacts there, so that the lines were told, and told without it.
    assert any(b"refused: [TEAM_API_TOKEN]" in path.read_bytes() for path in database)
    assert [path for path in files if PLAIN.encode() in path.read_bytes()] == []

    asked = hosts_asked()
    commands = " ".join(command for told in asked.values() for command in told)
    heard = ("flows.cli run", "uvicorn", "flows.warm", "stages.one")
    assert "127.0.0.1" in asked and [name for name in heard if name not in commands] == []
    assert outside(asked) == {}


class Listener(BaseHTTPRequestHandler):
    """A webhook: it keeps what it is sent."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append({"path": self.path, **json.loads(body)})  # type: ignore[attr-defined]
        self.send_response(204)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """The address of a webhook on loopback, and what it has received."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    received: list[dict[str, str]] = []
    server.received = received  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", received
    server.shutdown()
    server.server_close()


MAKE_BLOCK = """
import os
from prefect.blocks.notifications import CustomWebhookNotificationBlock
CustomWebhookNotificationBlock(
    name="team",
    url="{address}/{{{{team_token}}}}",
    json_data={{"subject": "{{{{subject}}}}", "text": "{{{{body}}}}"}},
    secrets={{"team_token": os.environ["TEAM_TOKEN"]}},
).save("team", overwrite=True)
"""


@pytest.mark.heavy
def test_a_run_that_fails_is_told_to_a_webhook(
    toy: Any, webhook: Any, wait_for: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, received = webhook
    monkeypatch.setenv("TEAM_TOKEN", "kept-in-the-block")
    unknown = toy.tunewright("notify", "custom-webhook/nobody")
    assert unknown.returncode == 2 and "this server has no such block" in unknown.stdout
    made = toy.sh(sys.executable, "-c", MAKE_BLOCK.format(address=address))
    assert made.returncode == 0, made.stderr
    for _ in range(2):  # said again, it is not told twice
        assert "tells of every run that fails" in toy.tunewright("notify", "custom-webhook/team").stdout
    (automation,) = toy.ask("/automations/filter", limit=10)
    try:
        assert toy.tunewright("run").returncode == 0
        toy.set("two.mode", "gate")
        assert toy.tunewright("run").returncode == 3
        wait_for(lambda: received, 120)
        (told,) = received
        assert told["path"] == "/kept-in-the-block"
        assert told["subject"] == "reproduce: GateClosed"
        assert "the gate is closed by 1 rule" in told["text"]
        assert f"/runs/flow-run/{toy.flow_run()['id']}" in told["text"]
    finally:
        subprocess.run(
            ["curl", "-sX", "DELETE", f"{toy.api_url}/automations/{automation['id']}"], check=True, capture_output=True
        )


@pytest.mark.heavy
def test_the_real_page_shows_the_graph_and_the_artifacts_and_asks_nobody_else(
    toy_alone: Any, tmp_path: Path, wait_for: Any, ask: Any, hosts_asked: Callable[[], dict[str, list[str]]]
) -> None:
    toy = toy_alone
    toy.set("two.mode", "gate")
    with toy.served(deployed=False) as served:
        page, serving = served.page, served.process
        wait_for(lambda: ask(f"{page}/api", "/work_pools/filter", limit=1), 240)  # the worker has come
        family = [psutil.Process(serving.pid), *psutil.Process(serving.pid).children(recursive=True)]
        listening = {
            connection.laddr.ip
            for process in family
            for connection in process.net_connections(kind="tcp")
            if connection.status == psutil.CONN_LISTEN
        }
        assert listening == {"127.0.0.1"}

        assert toy.tunewright("run").returncode == 3
        (run,) = ask(f"{page}/api", "/flow_runs/filter", limit=5)
        chromium = Page(tmp_path / "profile")
        try:
            chromium.shows(f"{page}/runs/flow-run/{run['id']}", run["name"], "GateClosed", "4 Task runs")

            def graph_is_drawn() -> bool:  # on a canvas: green for what ran, red for the gate
                pixels = chromium.pixels()
                green = sum(g > r + 60 and g > b + 60 for r, g, b in pixels)
                return green > 2000 and sum(r > g + 150 and r > b + 100 for r, g, b in pixels) > 2000

            wait_for(graph_is_drawn, 120)
            chromium.shows(f"{page}/artifacts", "reproduce-stages", "reproduce-summary")
            summary, stages = (latest(f"{page}/api", key)["id"] for key in ("reproduce-summary", "reproduce-stages"))
            chromium.shows(
                f"{page}/artifacts/artifact/{summary}", "A gate is closed: two", "the gate is closed by 1 rule"
            )
            chromium.shows(f"{page}/artifacts/artifact/{stages}", "How each stage ended", "GateClosed", "Blocked")
            hosts = {urlsplit(url).hostname for url in chromium.asked if url.startswith(("http", "ws"))}
            assert hosts == {"127.0.0.1"}
        finally:
            chromium.close()
    assert serving.returncode == 130
    asked = hosts_asked()
    commands = " ".join(command for told in asked.values() for command in told)
    assert "worker start" in commands and "uvicorn" in commands
    assert outside(asked) == {}
