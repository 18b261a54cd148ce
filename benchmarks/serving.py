"""The served model under load, beside a plain server that answers one request at a time.

    python -m benchmarks.serving [--clients N] [--requests N]

Both serve the exported model of this folder (`tunewright run` makes it) on loopback, over the same ONNX file. So many
clients at once send one text of the test split a request, each as soon as the last one is answered; first to one
server, then to the other, the rounds in turn.
stdout: requests a second, median and 99th percentile of the milliseconds of a request, and the ratio.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from statistics import median, quantiles
from typing import Any

from benchmarks.scratch import table
from tunewright.files import read_parquet
from tunewright.params import load_params

ROUNDS = 3


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
    wanted = parser.parse_args()
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
