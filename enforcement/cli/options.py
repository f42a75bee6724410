"""Which store a subcommand looks at: the same as a limiter's, unless an option says otherwise."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from typing import Any

from enforcement.settings import Settings


def add_store(parser: Any) -> None:
    """Add the options that name a store, and the one for programs."""
    parser.add_argument("--redis", metavar="URL", help="the store; default: SLUICEGATE_REDIS_URL, else REDIS_URL")
    parser.add_argument("--prefix", help="what all keys begin with; default: SLUICEGATE_PREFIX, else sg:")
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")


def settings_of(options: argparse.Namespace) -> Settings:
    """Return what a limiter would be made of. Raises ValueError: a variable cannot be used."""
    settings = Settings.from_env()
    return replace(settings, url=options.redis or settings.url, prefix=options.prefix or settings.prefix)


def source_of(options: argparse.Namespace) -> str:
    """Say where the store's address comes from."""
    if options.redis:
        return "--redis"
    return next((name for name in ("SLUICEGATE_REDIS_URL", "REDIS_URL") if os.environ.get(name)), "the default")
