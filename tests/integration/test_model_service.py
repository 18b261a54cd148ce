"""`tunewright serve-model` as it is started, asked, loaded and mistreated: a real process on loopback."""

from __future__ import annotations

import asyncio
import json
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import HTTPException
from ruamel.yaml import YAML
from starlette.routing import Route
from starlette.testclient import TestClient

from benchmarks.serving import mistreat
from flows.connections import MAX_CONNECTIONS, OTHER_FILES, SPARE
from flows.model_service import LOOPBACK, MAX_EXPLAINING, Batcher, service
from flows.onnx_model import OnnxModel
from tests.browser import Page, wait_for
from tests.conftest import REPOSITORY, environment
from tests.exported import export
from tests.processes import serving
from tunewright.params import load_params

LONG = "a word " * 20_000
PLACES = 200
"""Connections to a service that may have FILES open files."""
FILES = PLACES + SPARE + OTHER_FILES
TOKEN = "a-long-random-text"  # noqa: S105


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder with nothing but params and an exported model, with its ONNX form and a control."""
    root = tmp_path_factory.mktemp("served")
    params = YAML(typ="safe").load(REPOSITORY / "params.yaml")
    params["tokenize"]["max_length"] = 32
    YAML(typ="safe").dump(params, root / "params.yaml")
    control = {"temperature": 2.0, "abstain_below": 0.5001}
    export(root / "models/export", tiny_model, load_params(root / "params.yaml"), onnx=True, control=control)
    return root


@contextmanager
def served(folder: Path, files: int | None = None, **variables: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The service, until Ctrl-C.   files: that it may have open."""
    command = [sys.executable, "-m", "flows.cli", "serve-model", "--port", "0"]
    if files is not None:
        command = ["sh", "-c", f'ulimit -n {files}; exec "$0" "$@"', *command]
    with serving(command, signal.SIGINT, cwd=folder, env={**environment(), **variables}) as found:
        yield found


@contextmanager
def open_files(count: int) -> Iterator[None]:
    """As many open files for this process, and the limit as it was afterwards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != hard < count:
        pytest.skip(f"{count} open files are needed; the hard limit is {hard} (ulimit -H -n)")
    if resource.RLIM_INFINITY != soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """A service that has PLACES places, few enough for a test to take them all."""
    with served(folder, FILES) as (address, _):
        yield address


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    opened = Page(tmp_path_factory.mktemp("browser") / "profile")
    yield opened
    opened.close()


@pytest.fixture
def page(browser: Page) -> Page:
    """A browser that has asked and complained of nothing yet."""
    browser.asked.clear()
    browser.console.clear()
    return browser


def ask(url: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_it_answers_as_predict_does(url: str, folder: Path) -> None:
    texts = ["A fine film.", "", "write to anna@example.com", "A dull one. " * 40, "a \x07 bell"]
    status, told = ask(f"{url}/predict", {"texts": texts})
    assert status == 200
    command = [sys.executable, "-m", "flows.cli", "predict", *texts]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=True)
    for answer, line in zip(told["answers"], done.stdout.splitlines(), strict=True):
        asked = json.loads(line)
        assert answer["error"] == asked.get("error")
        if answer["error"] is None:
            assert answer["probabilities"] == pytest.approx(asked["probabilities"], abs=1e-5)
            assert answer["abstained"] == asked["abstained"]
    assert told["answers"][1]["error"].startswith("empty_text")
    assert told["answers"][4]["error"].startswith("control_characters: text holds the control character U+0007")


def test_a_word_s_attribution_is_what_its_logit_loses_without_it(url: str) -> None:
    status, told = ask(f"{url}/explain", {"text": "A fine film."})
    assert status == 200 and [word["word"] for word in told["words"]] == ["A", "fine", "film."]
    assert any(word["attribution"] != 0 for word in told["words"])
    assert ask(f"{url}/model")[1]["labels"] == ["negative", "positive"]
    assert ask(f"{url}/openapi.json")[1]["paths"].keys() >= {"/predict", "/explain", "/health"}


def test_a_bad_request_gets_a_short_answer_that_repeats_nothing(url: str) -> None:
    address = "anna@example.com"
    for body, status in (
        (b"{", 422),
        ({"texts": []}, 422),
        ({"texts": "one"}, 422),
        ({"texts": [address, 1]}, 422),
        ({"texts": [address], address: 1}, 422),
        ({"texts": [LONG] * 10}, 413),
    ):
        found, told = ask(f"{url}/predict", body)
        assert found == status, told
        assert address not in json.dumps(told) and "Traceback" not in json.dumps(told)
    assert "characters" in ask(f"{url}/predict", {"texts": [LONG]})[1]["answers"][0]["error"]
    half = ask(f"{url}/predict", {"texts": ["\ud800", "A fine film."]})[1]["answers"]
    assert half[0]["error"].startswith("bad_encoding") and half[1]["error"] is None
    assert ask(f"{url}/nothing")[0] == 404
    with pytest.raises(ValueError, match="Expecting value"):  # refused, in plain text
        ask(f"{url}/health", Host="evil.example")


def test_nothing_that_is_sent_keeps_others_from_an_answer(url: str) -> None:
    """Malformed, huge, of another encoding, slow, gone, and more of them than there are places, as
    `python -m benchmarks.serving --bad` sends it."""
    port = int(url.rsplit(":", 1)[1])
    found = {}
    with open_files(2 * PLACES):
        for name, answer, answered, _ in mistreat(port, PLACES, 3):
            found[name] = answer
            assert answered == 3, name
    assert found == {
        "no JSON": "422",
        "lists, 100,000 deep": "400",
        "a number of 100,000 digits": "400",
        "half a letter": "200",  # with an error in its place
        "half a letter as a key": "422",
        "65 texts": "422",
        "Latin-1": "400",
        "compressed": "400",
        "text/plain": "422",
        "ten megabytes": "413",
        "a gigabyte, announced": "413",
        "chunks without an end": "413",
        "a length below zero": "400",
        "a head of 20 kilobytes, and no end": "400",
        "no HTTP: a TLS greeting": "400",
        "by a name that is not ours": "400",
        "another method": "405",
        "a path out of the folder": "404",
        "a body that stops": "408",
        "a head that stops": "closed",
        "216 clients that send nothing": "216 held",
        "216 heads that stop": "216 held",
        "216 bodies that stop": "216 held",
        "216 second heads that stop": "216 held",
        "176 connections, kept alive": "176 × 200",
        "200 clients that ask and go": "gone",
    }
    assert ask(f"{url}/health") == (200, {"status": "ok"})


def test_the_limit_of_open_files_is_raised_as_far_as_needed_and_leaves_so_many_places() -> None:
    wanted = MAX_CONNECTIONS + SPARE + OTHER_FILES
    code = """
import json, resource, sys
from flows.connections import places

for limits in json.loads(sys.argv[1]):
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    print(places(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""
    limits = [(256, wanted + 7), (256, FILES), (100, 100)]
    with open_files(wanted + 7):
        done = subprocess.run(
            [sys.executable, "-c", code, json.dumps(limits)], capture_output=True, text=True, check=True
        )
    assert done.stdout.splitlines() == [
        f"{MAX_CONNECTIONS} {wanted} {wanted + 7}",
        f"{PLACES} {FILES} {FILES}",
        "1 100 100",
    ]


def test_texts_to_be_explained_wait_for_each_other_and_keep_nobody_else_waiting(folder: Path) -> None:
    model = OnnxModel(folder / "models/export", load_params(folder / "params.yaml"))
    ended: list[str] = []

    async def named(name: str, work: Awaitable[Any]) -> Any:
        try:
            return await work
        finally:
            ended.append(name)

    async def every() -> list[Any]:
        batcher = Batcher(model, 8)
        running = asyncio.create_task(batcher.run())
        explained = [named("explained", batcher.explain("A fine film.")) for _ in range(MAX_EXPLAINING)]
        refused = named("refused", batcher.explain("One too many."))
        found = await asyncio.gather(
            *explained, refused, named("answered", batcher.ask(["Dull."])), return_exceptions=True
        )
        found.append(await batcher.explain("Now there is room."))
        running.cancel()
        return found

    *explained, refused, answered, last = asyncio.run(every())
    assert all(label in model.labels and len(words) == 3 for label, words in explained)
    assert isinstance(refused, HTTPException) and refused.status_code == 503
    assert answered == model.answers(["Dull."]) and len(last[1]) == 4
    assert ended[:3] == ["refused", "explained", "answered"]  # whoever asks waits for one of them, not for all


def test_many_at_once_get_each_their_own_answer(url: str) -> None:
    texts = [f"film number {at}" for at in range(200)]
    alone = {text: ask(f"{url}/predict", {"texts": [text]})[1]["answers"][0] for text in texts[:20]}

    async def one(text: str) -> Any:
        return (await asyncio.to_thread(ask, f"{url}/predict", {"texts": [text]}))[1]["answers"][0]

    async def every() -> list[Any]:
        return await asyncio.gather(*(one(text) for text in texts))

    together = dict(zip(texts, asyncio.run(every()), strict=True))
    for text, answer in alone.items():
        assert together[text]["probabilities"] == pytest.approx(answer["probabilities"], abs=1e-5)


def try_text(page: Page, text: str) -> None:
    """Write a text into the page's field as a person does, and press the button."""
    page.evaluate("document.getElementById('text').value = ''; document.getElementById('text').focus()")
    page("Input.insertText", text=text)
    page.evaluate("document.getElementById('ask').click()")
    wait_for(lambda: page.evaluate("!document.getElementById('ask').disabled"), 60)


def words_shown(page: Page) -> list[dict[str, str]]:
    """Each word that is coloured, with its colour as the browser has it."""
    spans = "[...document.querySelectorAll('#words span')]"
    found: list[dict[str, str]] = page.evaluate(
        f"{spans}.map((span) => ({{word: span.textContent, colour: getComputedStyle(span).backgroundColor}}))"
    )
    return found


def test_the_page_shows_label_probabilities_and_coloured_words(url: str, page: Page) -> None:
    page.shows(url, "Try the model", "text_classification: negative, positive")
    text = "A fine film that nobody should miss."
    try_text(page, text)
    answer = ask(f"{url}/predict", {"texts": [text]})[1]["answers"][0]
    told = page.text()
    assert ("The model abstains" if answer["abstained"] else answer["predicted"]) in told
    for label, value in answer["probabilities"].items():
        assert label in told and f"{value:.4f}" in told
    bars = page.evaluate("[...document.querySelectorAll('progress')].map((bar) => bar.value)")
    assert sorted(bars) == pytest.approx(sorted(answer["probabilities"].values()), abs=1e-6)

    explained = ask(f"{url}/explain", {"text": text})[1]
    shown = words_shown(page)
    assert [one["word"] for one in shown] == text.split()
    orange, blue = "rgba(230, 120, 0, ", "rgba(40, 110, 200, "
    for one, word in zip(shown, explained["words"], strict=True):
        assert one["colour"].startswith(orange if word["attribution"] > 0 else blue), one
    assert any(one["colour"].endswith(", 0.7)") for one in shown)  # the word that does most

    try_text(page, LONG)
    assert "characters, expected at most 100000" in page.text()
    assert words_shown(page) == [] or not page.evaluate("document.getElementById('answer').checkVisibility()")
    asked = len(page.asked)
    try_text(page, "")  # the field is required: nothing is asked
    assert page.asked[asked:] == []
    try_text(page, text)
    assert page.asked[asked:] == [f"{url}/predict", f"{url}/explain"]
    assert "expected at most" not in page.text() and len(words_shown(page)) == len(shown)
    assert page.console == []


def test_a_hostile_text_is_shown_as_text_and_nothing_leaves_the_page(url: str, page: Page) -> None:
    page.shows(url, "text_classification")
    hostile = (
        "<script>document.title='taken'</script> <img/src=x/onerror=document.title='taken'> "
        "<svg/onload=document.title='taken'> javascript:alert(1) </p><h1>taken</h1>"
    )
    try_text(page, hostile)
    assert [one["word"] for one in words_shown(page)] == hostile.split()
    assert hostile in page.text()
    assert page.evaluate("document.querySelectorAll('main script, img, svg, #answer h1').length") == 0
    assert page.evaluate("document.title") == "Try the model"
    assert page.console == []
    assert {asked for asked in page.asked if not asked.startswith(f"{url}/")} == set()

    # What if something of it came to be read as HTML: the policy holds.
    page.evaluate("document.body.insertAdjacentHTML('beforeend', `<img src=x onerror=\"document.title='taken'\">`)")
    made = "Object.assign(document.createElement('script'), {textContent: `document.title = 'taken'`})"
    page.evaluate(f"document.body.append({made})")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        refused = page.evaluate(f"fetch('http://127.0.0.1:{port}/').then(() => 'let through', () => 'refused')")
        other.settimeout(0.5)
        with pytest.raises(TimeoutError):
            other.accept()
    assert refused == "refused" and page.evaluate("document.title") == "Try the model"
    assert len([line for line in page.console if "Content Security Policy" in line]) >= 3


def test_others_reach_it_only_with_a_token(folder: Path, page: Page) -> None:
    refused = subprocess.run(
        [sys.executable, "-m", "flows.cli", "serve-model", "--host", "0.0.0.0", "--port", "0"],  # noqa: S104
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2 and "TUNEWRIGHT_SERVE_TOKEN" in refused.stdout
    with served(folder, TUNEWRIGHT_SERVE_TOKEN=TOKEN) as (url, process):
        assert ask(f"{url}/predict", {"texts": ["a"]})[0] == 401
        assert ask(f"{url}/predict", {"texts": ["a"]}, Authorization="Bearer wrong")[0] == 401
        assert ask(f"{url}/predict", {"texts": ["a"]}, Authorization=f"Bearer {TOKEN}")[0] == 200
        page.shows(url, "Authorization: Bearer TOKEN")  # which it has been refused for, and asks for now
        page.evaluate("document.getElementById('token').focus()")
        page("Input.insertText", text=TOKEN)
        try_text(page, "A fine film.")
        wait_for(lambda: "text_classification: negative, positive" in page.text(), 60)
        assert [one["word"] for one in words_shown(page)] == ["A", "fine", "film."]
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, 130, -signal.SIGTERM), time.monotonic() - started


def test_every_address_wants_the_token_but_the_page_the_schema_and_health(folder: Path) -> None:
    model = OnnxModel(folder / "models/export", load_params(folder / "params.yaml"))
    app = service(model, {"name": "a model"}, list(LOOPBACK), TOKEN, 8)
    client = TestClient(app, base_url="http://localhost")
    told: dict[str, set[int]] = {}
    for route in app.routes:
        assert isinstance(route, Route) and route.methods
        for method in route.methods:
            answer = client.request(method, route.path, json={} if method == "POST" else None)
            told.setdefault(route.path, set()).add(answer.status_code)
    opened = {path: {200} for path in ("/", "/page.js", "/page.css", "/openapi.json", "/health")}
    assert told == {**opened, "/model": {401}, "/predict": {401}, "/explain": {401}}
    assert client.get("/model", headers={"Authorization": f"Bearer {TOKEN}"}).json() == {"name": "a model"}


def test_a_model_without_onnx_or_of_another_task_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "models/export", tmp_path / "models/export")
    shutil.copy(folder / "params.yaml", tmp_path)
    manifest = json.loads((tmp_path / "models/export/MANIFEST.json").read_text())
    del manifest["files"]["model.onnx"]
    (tmp_path / "models/export/model.onnx").unlink()
    (tmp_path / "models/export/MANIFEST.json").write_text(json.dumps(manifest))
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "serve-model", "--port", "0"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "export.onnx: true" in done.stdout and "Traceback" not in done.stdout
