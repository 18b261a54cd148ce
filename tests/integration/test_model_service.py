"""`tunewright serve-model` as it is started, asked, loaded and mistreated: a real process on loopback."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.conftest import REPOSITORY, environment
from tests.exported import export
from tunewright.params import load_params

LONG = "a word " * 20_000


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
def served(folder: Path, *options: str, **variables: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "serve-model", "--port", "0", *options],
        cwd=folder,
        env={**environment(), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        address = re.search(r"http://\S+", line)
        assert address, line + process.stdout.read()
        yield address[0], process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with served(folder) as (address, _):
        yield address


def ask(url: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_it_answers_as_predict_does(url: str, folder: Path) -> None:
    texts = ["A fine film.", "", "write to anna@example.com", "A dull one. " * 40]
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


def test_a_word_s_attribution_is_what_its_logit_loses_without_it(url: str) -> None:
    status, told = ask(f"{url}/explain", {"text": "A fine film."})
    assert status == 200 and [word["word"] for word in told["words"]] == ["A", "fine", "film."]
    assert any(word["attribution"] != 0 for word in told["words"])
    assert ask(f"{url}/model")[1]["labels"] == ["negative", "positive"]
    assert ask(f"{url}/openapi.json")[1]["paths"].keys() >= {"/predict", "/explain", "/health"}


def test_bad_requests_get_a_short_answer_and_nothing_is_down(url: str) -> None:
    """Malformed, of another encoding, huge, slow, gone in the middle: each by itself, then a good one."""
    address = "anna@example.com"
    for body, status in (
        (b"{", 422),
        (b'{"texts": ["caf\xe9"]}', 400),
        ({"texts": []}, 422),
        ({"texts": "one"}, 422),
        ({"texts": [address], "other": 1}, 422),
        ({"texts": ["a"] * 65}, 422),
        ({"texts": [LONG] * 10}, 413),
    ):
        found, told = ask(f"{url}/predict", body)
        assert found == status, told
        assert address not in json.dumps(told) and "Traceback" not in json.dumps(told)
    assert "characters" in ask(f"{url}/predict", {"texts": [LONG]})[1]["answers"][0]["error"]
    assert ask(f"{url}/nothing")[0] == 404

    port = int(url.rsplit(":", 1)[1])
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", port)) as gone:
        gone.sendall(head + b"Content-Length: 100\r\n\r\n{")
    with socket.create_connection(("127.0.0.1", port), timeout=60) as endless:
        endless.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        piece = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        try:
            for _ in range(64):
                endless.sendall(piece)
        except OSError:  # it no longer listens
            pass
        else:
            assert b" 413 " in endless.recv(4096)
    with socket.create_connection(("127.0.0.1", port), timeout=60) as slow:
        slow.sendall(head + b"Content-Length: 100\r\n\r\n{")
        assert ask(f"{url}/predict", {"texts": ["A fine film."]})[0] == 200
        assert b" 408 " in slow.recv(4096)
    assert ask(f"{url}/health") == (200, {"status": "ok"})
    with pytest.raises(ValueError, match="Expecting value"):  # refused, in plain text
        ask(f"{url}/health", Host="evil.example")


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


def test_others_reach_it_only_with_a_token(folder: Path) -> None:
    refused = subprocess.run(
        [sys.executable, "-m", "flows.cli", "serve-model", "--host", "0.0.0.0", "--port", "0"],  # noqa: S104
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2 and "TUNEWRIGHT_SERVE_TOKEN" in refused.stdout
    with served(folder, TUNEWRIGHT_SERVE_TOKEN="a-long-random-text") as (url, process):  # noqa: S106
        assert ask(f"{url}/predict", {"texts": ["a"]})[0] == 401
        assert ask(f"{url}/predict", {"texts": ["a"]}, Authorization="Bearer wrong")[0] == 401
        assert ask(f"{url}/predict", {"texts": ["a"]}, Authorization="Bearer a-long-random-text")[0] == 200
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, 130, -signal.SIGTERM), time.monotonic() - started


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
