"""Structured logs on stderr: JSON for machines, colours for people on a terminal."""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable


def configure(level: str) -> None:
    """Set structlog up for this process, and lead what libraries log into it."""
    terminal = sys.stderr.isatty()
    threshold = logging.getLevelNamesMapping()[level.upper()]
    rendering: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer()]
        if terminal
        else [
            # A container's name or a file's content never makes a line of its own: JSON escapes.
            # No values of variables: they may hold a container's data.
            structlog.processors.ExceptionRenderer(
                structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
            ),
            structlog.processors.JSONRenderer(),
        ]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=not terminal),
            *rendering,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_ToStructlog()], level=max(threshold, logging.INFO), force=True)


def crashed(error: BaseException) -> None:
    """Log what nobody has caught."""
    structlog.get_logger(__name__).error("crashed", exc_info=error)


class _ToStructlog(logging.Handler):
    """pyfuse3 logs with the standard library."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger(record.name).log(
            record.levelno, record.getMessage(), exc_info=record.exc_info
        )


class RateLimit:
    """At most one message per key and interval, because containers can make them happen."""

    def __init__(
        self,
        seconds: float = 10.0,
        *,
        max_keys: int = 1024,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds = seconds
        self._max_keys = max_keys
        self._clock = clock
        self._keys: dict[Hashable, tuple[float, int]] = {}

    def passes(self, key: Hashable) -> int | None:
        """Return how many were suppressed since the last that passed; None for one that does not.

        With more keys than are kept, those that have been quiet are forgotten.
        """
        now = self._clock()
        last, suppressed = self._keys.get(key, (-self._seconds, 0))
        if now - last < self._seconds:
            self._keys[key] = (last, suppressed + 1)
            return None
        if key not in self._keys and len(self._keys) >= self._max_keys:
            self._keys = {
                known: (then, count)
                for known, (then, count) in self._keys.items()
                if now - then < self._seconds
            }
            if len(self._keys) >= self._max_keys:
                return None
        self._keys[key] = (now, 0)
        return suppressed
