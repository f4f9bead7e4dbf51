"""Structured logs: one JSON object a line, with the session it is about and nothing of what was said in it."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

KEYS = ("session", "reason", "route", "method", "status", "ms", "seconds", "frames", "repeated", "late", "port")
"""What a record may carry besides its message: log.info("...", extra={"session": ...})."""
LOUD = ("aioice", "aiortc", "uvicorn", "asyncio")
"""Libraries of which only warnings are wanted: their other messages hold addresses, some of them viewers'."""


class Lines(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        content = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        content |= {key: record.__dict__[key] for key in KEYS if key in record.__dict__}
        if record.exc_info:
            content["trace"] = self.formatException(record.exc_info)
        return json.dumps(content, ensure_ascii=False, default=str)


class Plain(logging.Formatter):
    """A record for people."""

    def format(self, record: logging.LogRecord) -> str:
        told = " ".join(f"{key}={record.__dict__[key]}" for key in KEYS if key in record.__dict__)
        trace = "\n" + self.formatException(record.exc_info) if record.exc_info else ""
        return f"{record.levelname.lower()}: {record.getMessage()} {told}".rstrip() + trace


def set_up(kind: str) -> None:
    """Everything that is logged from here on goes to stderr, as `kind` of settings.LOGS says."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines() if kind == "json" else Plain())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in LOUD:
        logging.getLogger(name).setLevel(logging.WARNING)
