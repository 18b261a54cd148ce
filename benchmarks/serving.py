"""The served model under load, beside a plain server that answers one request at a time.

    python -m benchmarks.serving [--clients N] [--requests N]
    python -m benchmarks.serving --bad

Both serve the exported model of this folder (`tunewright run` makes it) on loopback, over the same ONNX file. So many
clients at once send one text of the test split a request, each as soon as the last one is answered; first to one
server, then to the other, the rounds in turn.
stdout: requests a second, median and 99th percentile of the milliseconds of a request, and the ratio.

--bad: what is malformed, too large or too slow, all of it at once, and twenty good requests after each answer; then
what is too many, and twenty good requests while it lasts.
stdout: what each was answered, how many of the twenty were, and the slowest of these.
"""

from __future__ import annotations

import argparse
import gzip
import http.client
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from statistics import median, quantiles
from typing import Any

from benchmarks.scratch import table
from flows.connections import places
from tunewright.files import read_parquet
from tunewright.params import load_params

ROUNDS = 3
GOOD = 20

POST = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
ASKED = b'{"texts": ["A joy from start to finish."]}'


def exchange(port: int, *pieces: bytes) -> str:
    """Send bytes, as far as they are taken: the status of what is answered, else "closed"."""
    with suppress(ConnectionError), socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        with suppress(ConnectionError):
            for piece in pieces:
                connection.sendall(piece)
        return (connection.recv(1 << 16).split() or [b"", b"closed"])[1].decode()
    return "closed"


def post(body: bytes, head: bytes = POST) -> bytes:
    """A request with that body."""
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def texts_of(value: str) -> bytes:
    """A request with that JSON as its texts."""
    return post(f'{{"texts": {value}}}'.encode())


MALFORMED: dict[str, tuple[bytes, ...]] = {
    "no JSON": (post(b"{"),),
    "lists, 100,000 deep": (texts_of("[" * 100_000 + "]" * 100_000),),
    "a number of 100,000 digits": (texts_of("1" * 100_000),),
    "half a letter": (texts_of('["\\ud800"]'),),
    "half a letter as a key": (post(b'{"texts": ["a"], "\\ud800": 1}'),),
    "65 texts": (texts_of(json.dumps(["a"] * 65)),),
    "Latin-1": (post('{"texts": ["café"]}'.encode("latin-1")),),
    "compressed": (post(gzip.compress(ASKED)),),
    "text/plain": (post(ASKED, POST.replace(b"application/json", b"text/plain")),),
    "ten megabytes": (post(b"[" * 10_000_000),),
    "a gigabyte, announced": (POST + b"Content-Length: 1000000000\r\n\r\n",),
    "chunks without an end": (POST + b"Transfer-Encoding: chunked\r\n\r\n", *[b"10000\r\n%065536d\r\n" % 0] * 64),
    "a length below zero": (POST + b"Content-Length: -1\r\n\r\n",),
    "a head of 20 kilobytes, and no end": (POST + b"X-Long: " + b"x" * 20_000,),
    "no HTTP: a TLS greeting": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),),
    "by a name that is not ours": (post(ASKED, POST.replace(b"localhost", b"evil.example")),),
    "another method": (b"DELETE /predict HTTP/1.1\r\nHost: localhost\r\n\r\n",),
    "a path out of the folder": (b"GET /../params.yaml HTTP/1.1\r\nHost: localhost\r\n\r\n",),
    "a body that stops": (POST + b"Content-Length: 100\r\n\r\n{",),
    "a head that stops": (POST[:40],),
}
"""What is sent, all of it at once."""


def lasting(port: int, count: int, data: bytes, answered: bool = False) -> Callable[[ExitStack], str]:
    """So many connections that send this, and stay; `answered`: each reads one answer."""

    def begin(stack: ExitStack) -> str:
        every = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60)) for _ in range(count)]
        for connection in every:
            with suppress(ConnectionError):
                connection.sendall(data)
        if not answered:
            return f"{count:,} held"
        return f"{sum(map(_well, every)):,} × 200"

    return begin


def _well(connection: socket.socket) -> bool:
    with suppress(ConnectionError):
        return connection.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
    return False


def flood(port: int, most: int) -> dict[str, Callable[[ExitStack], str]]:
    """What goes on while others ask.   most: connections that the server has places for."""
    more, fewer = most + 16, most - 24
    health = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    return {
        f"{more:,} clients that send nothing": lasting(port, more, b""),
        f"{more:,} heads that stop": lasting(port, more, POST[:40]),
        f"{more:,} bodies that stop": lasting(port, more, POST + b"Content-Length: 100\r\n\r\n{"),
        f"{more:,} second heads that stop": lasting(port, more, health + POST[:40]),
        f"{fewer:,} connections, kept alive": lasting(port, fewer, health, answered=True),
        "200 clients that ask and go": lambda _: _ask_and_go(port, 200),
    }


def _ask_and_go(port: int, count: int) -> str:
    for _ in range(count):
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(post(ASKED))
    return "gone"


def good(port: int, count: int) -> tuple[int, float]:
    """Good requests, each on a connection of its own: how many are answered, and the milliseconds of the slowest."""
    answered, slowest = 0, 0.0
    for _ in range(count):
        started = time.perf_counter()
        answered += exchange(port, post(ASKED)) == "200"
        slowest = max(slowest, (time.perf_counter() - started) * 1000)
    return answered, slowest


def mistreat(port: int, most: int, count: int = GOOD) -> Iterator[tuple[str, str, int, float]]:
    """Each kind of bad request: its name, what it was answered, and what `good` says after it or while it lasts.

    most: connections that the server has places for; this process may have as many open files.
    """
    with ThreadPoolExecutor(len(MALFORMED)) as pool:
        told = {name: pool.submit(exchange, port, *pieces) for name, pieces in MALFORMED.items()}
        for name, status in told.items():
            yield name, status.result(), *good(port, count)
    for name, begin in flood(port, most).items():
        with ExitStack() as stack:
            yield name, begin(stack), *good(port, count)


@contextmanager
def ours() -> Iterator[int]:
    """`tunewright serve-model`: the port."""
    command = [sys.executable, "-m", "flows.cli", "serve-model", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.search(r":(\d+)\b", (line := process.stdout.readline()))
        if found is None:
            raise SystemExit(line + process.stdout.read())
        yield int(found[1])
        process.terminate()


@contextmanager
def plain() -> Iterator[int]:
    """Python's own HTTP server, one request after another, each text a batch of its own."""
    from flows.onnx_model import OnnxModel

    params = load_params()
    model = OnnxModel(params.path("export"), params)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answers = [{"predicted": found.predicted} for found in model.answers(asked["texts"])]
            body = json.dumps({"answers": answers}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            # It has one connection at a time: who is answered must make room.
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Nothing."""

    class Server(HTTPServer):
        request_queue_size = 1024

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()


def load(port: int, texts: list[str], clients: int) -> tuple[float, list[float]]:
    """Every text once, by so many clients at once: requests a second, and the milliseconds of each."""
    waiting, took = iter(texts), []
    lock = threading.Lock()

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while True:
            with lock:
                text = next(waiting, None)
            if text is None:
                return
            started = time.perf_counter()
            connection.request("POST", "/predict", json.dumps({"texts": [text]}), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            body = json.loads(answer.read())
            if answer.status != 200 or "predicted" not in body["answers"][0]:
                raise SystemExit(f"status {answer.status}: {body}")
            with lock:
                took.append((time.perf_counter() - started) * 1000)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(texts) / (time.perf_counter() - started), took


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--bad", action="store_true", help="send bad requests instead")
    wanted = parser.parse_args()
    if wanted.bad:
        most = places()  # raises the limit of open files for this process too, as far as the server's own is raised
        with ours() as port:
            told = [[*one[:2], f"{one[2]} of {GOOD}", one[3]] for one in mistreat(port, most)]
        print(table([["request", "answer", "good ones after it", "slowest ms"], *told]))
        return
    rows = read_parquet(load_params().path("prepared") / "test.parquet")["text"].to_pylist()
    texts = [rows[at % len(rows)] for at in range(wanted.requests)]
    rates: dict[str, list[float]] = {"one at a time": [], "serve-model": []}
    waits: dict[str, list[float]] = {name: [] for name in rates}
    with ours() as port, plain() as other:
        for at in (other, port):
            load(at, texts[:50], wanted.clients)
        for _ in range(ROUNDS):
            for name, at in (("one at a time", other), ("serve-model", port)):
                rate, took = load(at, texts, wanted.clients)
                rates[name].append(rate)
                waits[name] += took
    lines: list[list[Any]] = [["server", "requests/s", "median ms", "p99 ms"]]
    lines += [[name, median(rates[name]), median(waits[name]), quantiles(waits[name], n=100)[98]] for name in rates]
    print(table(lines))
    print(f"ratio {median(rates['serve-model']) / median(rates['one at a time']):.2f}, {wanted.clients} clients")


if __name__ == "__main__":
    main()
