"""The log, which has one JSON object on each line, and no secret wherever in a line it would be."""

import re
from collections.abc import MutableMapping
from typing import Any

import structlog

# A token or a management key, also in the encoding of an address. What people may see of it stays.
_SECRET = re.compile(r"(sg(?:_|%5f)(?:live|mgmt)(?:_|%5f)[0-9a-z]{0,4}+)[0-9a-z%]+", re.IGNORECASE)


def without_secrets(logger: Any, method: str, line: str | MutableMapping[str, Any]) -> str:
    """
    Return a log line in which "***" follows the prefix of each secret in place of the rest. This is a processor of
    structlog, and the last.
    """
    return hide_secrets(str(line))


def hide_secrets(text: str) -> str:
    """Return a text in which "***" follows the prefix of each secret in place of the rest."""
    return _SECRET.sub(r"\1***", text)


# Text of a client is written with \u escapes, so it cannot start a line or control the terminal.
_LOG_PROCESSORS: list[structlog.typing.Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.stdlib.ExtraAdder(),
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
]
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "json": {
            "()": structlog.stdlib.ProcessorFormatter,
            "foreign_pre_chain": _LOG_PROCESSORS,
            "processors": [
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(ensure_ascii=True),
                without_secrets,
            ],
        },
    },
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "json"}},
    "root": {"handlers": ["console"], "level": "INFO"},
    "loggers": {
        "django.server": {"handlers": ["console"], "level": "INFO", "propagate": False},
        # Its lines would have parts of URLs with secrets. What failed is in the list of messages.
        "apprise": {"level": "CRITICAL", "propagate": False},
        # Each run of a task would write three lines, several times a second. Failures have a higher level and stay.
        **{name: {"level": "WARNING"} for name in ("celery.beat", "celery.worker.strategy", "celery.app.trace")},
    },
}


def configure_structlog() -> None:
    """Send what is logged with structlog through the same handlers as all other lines."""
    structlog.configure(
        processors=[*_LOG_PROCESSORS, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
