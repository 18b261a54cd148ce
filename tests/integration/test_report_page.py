"""The report's page in a real browser: it renders, runs no script, and asks nothing of any server."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.browser import browser
from tests.unit.test_report import FINDINGS, finding, make_page

GOOD_TINT, BAD_TINT = (0xE3, 0xF4, 0xEA), (0xFD, 0xE8, 0xE6)


def browse(page: Path, profile: Path, *switches: str) -> subprocess.CompletedProcess[str]:
    """Open the page in Chromium, with a profile of its own."""
    command = [*browser(profile), *switches, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def picture(page: Path, width: int, folder: Path) -> dict[tuple[int, int, int], int]:
    """How many pixels of each colour a screenshot of the page has."""
    from PIL import Image

    shot = folder / f"{width}.png"
    browse(page, folder / f"profile-{width}", f"--window-size={width},1600", f"--screenshot={shot}")
    with Image.open(shot) as image:
        counted = image.convert("RGB").getcolors(maxcolors=2**24)
    assert counted is not None
    return {colour: count for count, colour in counted}


@pytest.fixture
def asked() -> Iterator[tuple[str, list[str]]]:
    """A loopback server's address, and the paths that were asked of it."""
    paths: list[str] = []

    class Listener(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", paths
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_hostile_page_neither_runs_nor_asks(tmp_path, asked):
    address, paths = asked
    attack = (
        f'"><script>document.title="taken"; fetch("{address}/script")</script>'
        f'<img src="{address}/image" onerror="document.title=\'taken\'"><link rel=stylesheet href="{address}/style">'
    )
    page, _ = make_page(
        tmp_path,
        labels=(f"{attack}a", f"{attack}b"),
        title=attack,
        text=attack,
        findings=[finding(attack, "fail", attack, attack)],
        gate_open=False,
    )
    shown = browse(page, tmp_path / "profile", "--dump-dom")
    assert paths == []
    assert "<script" not in shown.stdout and "<img" not in shown.stdout
    assert "The gate is closed" in shown.stdout
    assert "CONSOLE" not in shown.stderr, shown.stderr  # no script error, nothing blocked by the page's own policy


@pytest.mark.parametrize(("gate_open", "tint"), [(True, GOOD_TINT), (False, BAD_TINT)])
def test_the_verdict_is_seen_at_once_on_a_screen_and_on_a_telephone(tmp_path, gate_open, tint):
    findings = FINDINGS if gate_open else [*FINDINGS, finding("verdict.max_metrics.ece", "fail")]
    page, _ = make_page(tmp_path, findings=findings, gate_open=gate_open)
    other = BAD_TINT if gate_open else GOOD_TINT
    for width in (1200, 500):
        colours = picture(page, width, tmp_path)
        assert colours.get(tint, 0) > 20_000  # the banner
        assert colours.get(other, 0) < colours[tint] / 4  # no more than badges
        assert len(colours) > 100  # letters and pictures, not an empty page
