"""Connections to a service that no client can keep others out of: HTTP/1.1 by uvicorn, with limits that it lacks.

uvicorn waits for the first byte of a request, and for the rest of its head, as long as the client likes, and refuses
whoever comes where too many wait so (the attack is known as Slowloris). Here a request's head must come within
HEAD_SECONDS, and where all places are taken the client that has been waited for longest gives its own to the one who
comes.
"""

from __future__ import annotations

import asyncio
import resource

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0
"""In which a request's first line and headers must have come, since the connection stands or the last answer."""
MAX_CONNECTIONS = 1024
SPARE = 64
"""Connections above these, where every client is being answered; the next is told to come again."""
OTHER_FILES = 128
"""Open files of the process that are no connections, at most."""


def places() -> int:
    """How many connections there may be: MAX_CONNECTIONS, or what the limit of open files, raised as far as it goes,
    leaves."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    others = SPARE + OTHER_FILES
    if resource.RLIM_INFINITY != soft < MAX_CONNECTIONS + others:
        soft = MAX_CONNECTIONS + others if hard == resource.RLIM_INFINITY else min(MAX_CONNECTIONS + others, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else max(1, min(MAX_CONNECTIONS, soft - others))


class Connection(H11Protocol):
    """One client, of as many as there are `places`. `waits`: whether it is the client's turn, to send a request or the
    rest of one, or to read the answer. `since`: when its last answer ended, or when it came, on the loop's clock."""

    places = MAX_CONNECTIONS
    since = 0.0
    _timer: asyncio.TimerHandle | None = None

    @property
    def waits(self) -> bool:
        """Whether it is the client's turn."""
        return self._head_awaited or self.cycle.more_body or self.flow.write_paused

    @property
    def _head_awaited(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a place; where all are taken, that of the client that has been waited for longest."""
        if len(self.connections) >= self.places:
            waiting = [found for found in self.connections if isinstance(found, Connection) and found.waits]
            if waiting:
                min(waiting, key=lambda found: found.since).give_way()
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """No longer wait for anything."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._wait()
        super().on_response_complete()

    def give_way(self) -> None:
        """Leave at once, whatever was still to come."""
        self.connections.discard(self)
        self.transport.abort()

    def _wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.since = self.loop.time()
        self._timer = self.loop.call_later(HEAD_SECONDS, self._late)

    def _late(self) -> None:
        if self._head_awaited or self.flow.write_paused:
            self.give_way()
        else:  # the body has a limit of its own, and an answer takes what it takes
            self._timer = self.loop.call_later(HEAD_SECONDS, self._late)
