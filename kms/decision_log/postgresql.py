"""Connections to PostgreSQL that a server cannot hold for ever, also one that lives and says nothing."""

from __future__ import annotations

import time
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from sqlalchemy import Engine, event

CONNECT_SECONDS = 5
ANSWER_SECONDS = CONNECT_SECONDS + 1.0
"""How long an answer is waited for: a server that is alive ends a statement itself before that."""

OPTIONS: dict[str, Any] = {
    "pool_pre_ping": True,
    "pool_timeout": CONNECT_SECONDS,
    "connect_args": {
        "connect_timeout": CONNECT_SECONDS,
        "options": f"-c statement_timeout={CONNECT_SECONDS}s",
        # A server that is gone without a word is noticed; the system alone would wait for a quarter of an hour.
        "tcp_user_timeout": CONNECT_SECONDS * 1000,
        "keepalives_idle": CONNECT_SECONDS,
        "keepalives_interval": 1,
    },
}
"""For `create_engine`."""

Result = TypeVar("Result")


class NoAnswerError(psycopg.OperationalError):
    """The server said nothing within `ANSWER_SECONDS`; the connection is closed."""


class BoundedConnection(psycopg.Connection[Any]):
    """A connection on which no silence lasts longer than `ANSWER_SECONDS`.

    The limits of the server end nothing where the server stands still, and those of the network see a machine that
    takes what is sent to it.
    """

    def wait(self, gen: PQGen[Result], *arguments: Any, **options: Any) -> Result:
        """As the driver's: everything that waits for this server goes through it."""
        return super().wait(self._bounded(gen), *arguments, **options)

    def _bounded(self, steps: PQGen[Result]) -> PQGen[Result]:
        """*steps*, until there was nothing to be done for too long; the driver tells that ten times a second."""
        heard = time.monotonic()
        try:
            wanted = next(steps)
            while True:
                ready = yield wanted
                if ready:
                    heard = time.monotonic()
                elif time.monotonic() - heard > ANSWER_SECONDS:
                    # What comes later would be taken for the answer to something else.
                    self.pgconn.finish()
                    raise NoAnswerError(f"no answer within {ANSWER_SECONDS:.0f} s")
                wanted = steps.send(ready)
        except StopIteration as end:
            result: Result = end.value
            return result


def bound(engine: Engine) -> None:
    """Have *engine* make such connections."""

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: object, _record: object, arguments: list[Any], options: dict[str, Any]) -> BoundedConnection:
        return BoundedConnection.connect(*arguments, **options)
