"""The exported classifier over HTTP, for programs and for people: POST /predict, and a page to try texts on.

    tunewright serve-model

It binds to loopback unless told otherwise, and to nothing else without a token. Requests that come at the same time
are answered in one batch. What is too large, too slow or no JSON gets a short answer with its status, and nothing of it
is kept; no text is logged.
"""

from __future__ import annotations

import asyncio
import hmac
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.middleware.trustedhost import TrustedHostMiddleware

from flows.onnx_model import Answer, OnnxModel, manifest_of
from flows.which_model import Chosen
from tunewright.errors import UserError
from tunewright.files import read_json

TOKEN_VARIABLE = "TUNEWRIGHT_SERVE_TOKEN"  # noqa: S105
LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
MAX_TEXTS = 64
"""Of one request."""
MAX_BODY = 1 << 20
"""Bytes of one request."""
MAX_WAITING = 1024
"""Texts that wait for an answer; beyond that a request is told to come again."""
MAX_EXPLAINING = 16
"""Texts that wait to be explained, each of which takes as long as hundreds of answers."""
BODY_SECONDS = 10.0
"""In which a request's body must have come."""
LINGER_SECONDS = 2.0
"""For which a client that is refused may go on sending, so that it comes to read why."""
SHOWN = 5
"""Faults of a request that are told."""
PAGE = Path(__file__).with_name("model_page")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)

Result = TypeVar("Result")


class Texts(BaseModel):
    """What is asked."""

    model_config = ConfigDict(extra="forbid", strict=True)

    texts: Annotated[list[str], Field(min_length=1, max_length=MAX_TEXTS)]


class One(BaseModel):
    """A text to be explained."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: str


class Batcher:
    """Answers in batches: what has come while the last batch was computed makes the next one."""

    def __init__(self, model: OnnxModel, max_batch_size: int) -> None:
        self._model = model
        self._max_batch_size = max_batch_size
        self._waiting: list[tuple[str, asyncio.Future[Answer]]] = []
        self._come = asyncio.Event()
        self._busy = asyncio.Lock()
        self._explaining = asyncio.Lock()
        self._to_explain = 0

    async def ask(self, texts: list[str]) -> list[Answer]:
        """An answer a text, in their order.

        Raises
            HTTPException  503, where too many wait already.
        """
        if len(self._waiting) + len(texts) > MAX_WAITING:
            raise HTTPException(503, "too many texts wait already; ask again", {"Retry-After": "1"})
        loop = asyncio.get_running_loop()
        asked = [(text, loop.create_future()) for text in texts]
        self._waiting += asked
        self._come.set()
        return list(await asyncio.gather(*(future for _, future in asked)))

    async def explain(self, text: str) -> tuple[str, list[tuple[str, float]]]:
        """The label of a text and what each word does, computed between two batches; only one text between two.

        Raises
            HTTPException  503, where too many wait already.
        """
        if self._to_explain >= MAX_EXPLAINING:
            raise HTTPException(503, "too many texts wait to be explained already; ask again", {"Retry-After": "1"})
        self._to_explain += 1
        try:
            async with self._explaining:
                return await self._alone(lambda: self._model.attributions(text))
        finally:
            self._to_explain -= 1

    async def _alone(self, work: Callable[[], Result]) -> Result:
        async with self._busy:
            return await asyncio.to_thread(work)

    async def run(self) -> None:
        """Answer until cancelled."""
        while True:
            await self._come.wait()
            batch, self._waiting = self._waiting[: self._max_batch_size], self._waiting[self._max_batch_size :]
            if not self._waiting:
                self._come.clear()
            # Who has gone away needs no answer.
            batch = [(text, future) for text, future in batch if not future.done()]
            texts = [text for text, _ in batch]
            try:
                answers = await self._alone(lambda asked=texts: self._model.answers(asked))  # type: ignore[misc]
            except Exception as error:  # every one that waits must hear of it, and the next batch be answered
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)


class Bounded:
    """ASGI middleware: a body that is larger than MAX_BODY, or slower than BODY_SECONDS, is refused."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        """Read the whole body first, then hand it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        told = dict(scope["headers"]).get(b"content-length", b"0")
        body = bytearray()
        try:
            if int(told) > MAX_BODY:
                raise OverflowError
            async with asyncio.timeout(BODY_SECONDS):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > MAX_BODY:
                        raise OverflowError
        except OverflowError:
            refusal = _refusal(413, f"the request is larger than {MAX_BODY} bytes")
            await refusal(scope, receive, partial(_lingering, receive, send))
            return
        except TimeoutError:
            await _refusal(408, f"the request took longer than {BODY_SECONDS:g} seconds")(scope, receive, send)
            return
        handed = False

        async def whole() -> Any:
            nonlocal handed
            if handed:
                return await receive()
            handed = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self._app(scope, whole, send)


async def _lingering(receive: Callable[[], Awaitable[Any]], send: Any, message: Any) -> None:
    """Send a message of an answer whose request still comes. Where a connection is closed on what its client is still
    sending, TCP throws the answer away (RFC 9112, 9.6): so the rest is read, and forgotten."""
    if message["type"] == "http.response.body":
        await send({**message, "more_body": True})
        message = {"type": "http.response.body"}
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while (await receive()).get("more_body", False):
                    pass
    await send(message)


def _refusal(status: int, detail: str) -> JSONResponse:
    # The connection is closed: what is still to come of the request is not read.
    return JSONResponse({"detail": detail}, status, {"Connection": "close"})


def service(
    model: OnnxModel, told: dict[str, Any], hosts: list[str], token: str | None, max_batch_size: int
) -> FastAPI:
    """The application.

    told: of the model, for GET /model.   hosts: names by which it may be called ("*": any), so that no page of
    another site reaches it by a name of its own.   token: that a request must bear which asks the model or about it
    (so not one for the page, for the schema, or for /health); None: none.
    """

    @asynccontextmanager
    async def living(app: FastAPI) -> AsyncIterator[None]:
        app.state.batcher = Batcher(model, max_batch_size)
        running = asyncio.create_task(app.state.batcher.run())
        yield
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    def allowed(authorization: Annotated[str, Header()] = "") -> None:
        if token is not None and not hmac.compare_digest(authorization.encode(), f"Bearer {token}".encode()):
            raise HTTPException(
                401, "expected the header `Authorization: Bearer TOKEN`", {"WWW-Authenticate": "Bearer"}
            )

    app = FastAPI(title="Tunewright", lifespan=living, docs_url=None, redoc_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    app.add_middleware(Bounded)

    @app.exception_handler(RequestValidationError)
    async def refused(_request: Request, error: RequestValidationError) -> JSONResponse:
        # Not FastAPI's own answer, which repeats what was sent; nor the name of a key that nobody knows.
        faults = [
            f"{'.'.join(map(str, fault['loc'][: -1 if fault['type'] == 'extra_forbidden' else None]))}: {fault['msg']}"
            for fault in error.errors()[:SHOWN]
        ]
        return JSONResponse({"detail": "; ".join(faults)}, 422)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/model", dependencies=[Depends(allowed)])
    async def about() -> dict[str, Any]:
        return told

    @app.post("/predict", dependencies=[Depends(allowed)])
    async def predict(asked: Texts) -> dict[str, list[dict[str, Any]]]:
        answers = await app.state.batcher.ask(asked.texts)
        return {"answers": [asdict(answer) for answer in answers]}

    @app.post("/explain", dependencies=[Depends(allowed)])
    async def explain(asked: One) -> dict[str, Any]:
        label, words = await app.state.batcher.explain(asked.text)
        return {"label": label, "words": [{"word": word, "attribution": value} for word, value in words]}

    def page(name: str, kind: str) -> Any:
        headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
        return FileResponse(PAGE / name, media_type=kind, headers=headers)

    @app.get("/", include_in_schema=False)
    async def index() -> Any:
        return page("index.html", "text/html; charset=utf-8")

    @app.get("/page.js", include_in_schema=False)
    async def script() -> Any:
        return page("page.js", "text/javascript; charset=utf-8")

    @app.get("/page.css", include_in_schema=False)
    async def style() -> Any:
        return page("page.css", "text/css; charset=utf-8")

    return app


def app_of(model: OnnxModel, by: Chosen, host: str, token: str | None, max_batch_size: int) -> FastAPI:
    """The application for a chosen model, with what it tells of it."""
    manifest = read_json(by.folder / manifest_of(by.folder))
    told = {
        "name": by.name,
        "task": by.params.task.type,
        "labels": model.labels,
        "model_sha256": manifest["model_sha256"],
        "max_texts": MAX_TEXTS,
        "max_text_characters": model.max_text_characters,
    }
    return service(model, told, list(LOOPBACK) if host in LOOPBACK else ["*"], token, max_batch_size)


def token_for(host: str) -> str | None:
    """The token of the environment, which a service that others can reach must have.

    Raises
        UserError  where it has none.
    """
    token = os.environ.get(TOKEN_VARIABLE) or None
    if token is None and host not in LOOPBACK:
        raise UserError(
            f"--host {host}: found no token; whoever reaches this address could ask the model. "
            f"Set {TOKEN_VARIABLE} in the environment to a long random text, or leave --host out."
        )
    return token


def serve(app: FastAPI, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Answer until a signal comes; what is being answered then is answered.   ready: is told the address.

    Raises
        UserError  where the port is taken.
    """
    import socket

    import uvicorn

    from flows.connections import SPARE, Connection, places

    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        raise UserError(f"--port {port}: {error.strerror}. Name another one.") from error
    Connection.places = places()
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        http=Connection,
        ws="none",
        timeout_keep_alive=10,
        timeout_graceful_shutdown=10,
        limit_concurrency=Connection.places + SPARE,
        server_header=False,
    )
    bound.listen(MAX_WAITING)  # so that who hears of the address is heard
    shown = f"[{host}]" if ":" in host else host
    ready(f"http://{shown}:{bound.getsockname()[1]}")
    uvicorn.Server(config).run(sockets=[bound])
