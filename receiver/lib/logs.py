"""Logs: JSON lines on standard error, readable text on a terminal; what they quote is escaped.

One event is one line, whatever is in it, and a flood of events of one kind is a few lines.
"""

import logging
import sys
import threading
import time
from collections.abc import MutableMapping
from typing import Any

import structlog
from structlog.typing import FilteringBoundLogger

MAX_VALUE = 1_000  # characters; of a traceback the last 4,000
MAX_TRACEBACK = 4_000
PERIOD_SECONDS = 60
MAX_KEYS = 50  # counted apart in one period; the rest is one

Fields = MutableMapping[str, Any]

_HANDLER = logging.StreamHandler()  # of what libraries warn of


def configure() -> None:
    """Set logging up for this process: ours, and what libraries warn of."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            *_end(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    _HANDLER.stream = sys.stderr  # as it is now
    _HANDLER.setFormatter(formatter())
    _HANDLER.setLevel(logging.WARNING)
    logging.getLogger().addHandler(_HANDLER)


def formatter() -> logging.Formatter:
    """Write the records of `logging` as our own lines."""
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            *_end(),
        ],
    )


def _end() -> list[Any]:
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    if sys.stderr.isatty():
        return [stamp, _bound, _escape, structlog.dev.ConsoleRenderer()]
    return [stamp, _bound, _json]


_RENDER = structlog.processors.JSONRenderer()


def _json(logger: object, name: str, fields: Fields) -> str:
    # JSON lets one control character stand as it is.
    return str(_RENDER(logger, name, fields)).replace("\x7f", "\\u007f")


def _bound(_logger: object, _name: str, fields: Fields) -> Fields:
    """Cut what is long: a line that is written in one piece does not mix with another's."""
    for key, value in fields.items():
        if key == "exception":
            fields[key] = str(value)[-MAX_TRACEBACK:]
        elif isinstance(value, str) and len(value) > MAX_VALUE:
            fields[key] = value[:MAX_VALUE] + "…"
    return fields


def _escape(_logger: object, _name: str, fields: Fields) -> Fields:
    """Escape what would steer a terminal."""
    for key, value in fields.items():
        if not isinstance(value, (bool, int, float, type(None))):
            fields[key] = "".join(map(_visible, str(value)))
    return fields


def _visible(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")


class Sums:
    """Of lines that say the same, the first of each minute, and then how many there were."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, ...], int] = {}
        self._lines: dict[tuple[str, ...], tuple[Any, str, dict[str, Any]]] = {}
        self._until = 0.0

    def warn(self, log: FilteringBoundLogger, event: str, *same: str, **facts: object) -> None:
        """Write a warning, unless there was one of the `same` a short while ago."""
        self.flush()
        with self._lock:
            key = (event, *same)
            if key not in self._counts and len(self._counts) >= MAX_KEYS:
                key, facts = (event,), {"of": "many"}
            first = key not in self._counts
            self._counts[key] = self._counts.get(key, 0) + (not first)
            self._lines[key] = log, event, facts
        if first:
            log.warning(event, **facts)

    def flush(self, *, at_once: bool = False) -> None:
        """Log how many lines were left out, once a period is over or `at_once`."""
        with self._lock:
            now = time.monotonic()
            if now < self._until and not at_once:
                return
            left_out = [(*self._lines[key], count) for key, count in self._counts.items() if count]
            self._counts, self._lines, self._until = {}, {}, now + PERIOD_SECONDS
        for log, event, facts, count in left_out:
            log.warning(event, **facts, more=count)


_SUMS = Sums()
warn_summed, flush = _SUMS.warn, _SUMS.flush  # of this process
