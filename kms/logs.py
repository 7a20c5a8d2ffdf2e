"""Where log lines go: decisions to standard output, everything else to standard error, each line one JSON object."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime


class JsonLines(logging.Formatter):
    """A record as one JSON object on one line; an exception is told by its trace."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure_logging(level: str) -> None:
    """Set it up, once for the process.

    The loggers `kms.decisions` and `kms.requests` write lines that are JSON already: the first to standard output, the
    second to standard error, both whatever *level* is. No line of any logger holds a secret.
    """
    # No line says from which thread or line of code it comes, and finding that out costs more than the rest.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None  # as the manual has it ("Optimization")
    errors = logging.StreamHandler(sys.stderr)
    errors.setFormatter(JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[errors])
    # Every request to the guest agent would be a line, and so would every part of a handshake.
    for name in ("httpx", "httpcore", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name, stream in (("kms.decisions", sys.stdout), ("kms.requests", sys.stderr)):
        handler = logging.StreamHandler(stream)
        handler.setFormatter(logging.Formatter("%(message)s"))
        log = logging.getLogger(name)
        log.setLevel(logging.INFO)
        log.propagate = False
        log.addHandler(handler)
