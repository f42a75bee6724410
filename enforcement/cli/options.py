"""
Options that name the store, and where the help says that the documentation is.

Without these options a command uses the same store as a limiter.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from typing import Final

from enforcement.cli.remote.account import known_address
from enforcement.settings import Settings, url_variable, variables

PAGE: Final = "/docs/command-line/"


def documentation() -> str:
    """Return the line of a help that says where the documentation is, which each control plane serves."""
    address = known_address()
    return f"documentation: {address}{PAGE}" if address else f"documentation: {PAGE} of the control plane"


def as_part(text: str) -> str:
    """Return the help of an option that is a sentence as argparse has it, which goes on behind a name."""
    first, rest = text[:1], text[1:]
    words = first + rest if rest[:1].isupper() else first.lower() + rest
    return words.removesuffix(".")


def new_parser(prog: str, description: str, epilog: str, usage: str | None = None) -> argparse.ArgumentParser:
    """Return a new parser for a command, whose help ends with the address of the documentation."""
    return argparse.ArgumentParser(
        prog=prog,
        usage=usage,
        description=description,
        epilog=f"{epilog}\n{documentation()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_store(parser: argparse.ArgumentParser) -> None:
    """Add the options ``--redis`` and ``--prefix``, which name the store, and ``--json`` to a parser."""
    parser.add_argument(
        "--redis", metavar="URL", help="URL of the store; default: SLUICEGATE_REDIS_URL, else REDIS_URL"
    )
    parser.add_argument("--prefix", help="prefix of all keys; default: SLUICEGATE_PREFIX, else sg:")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def settings_of(options: argparse.Namespace) -> Settings:
    """
    Return settings from the environment, in which given options replace the URL and the prefix of the store.

    Raises:
        ValueError: A variable or an option is not valid.
    """
    settings = Settings.from_env()
    return replace(settings, url=options.redis or settings.url, prefix=options.prefix or settings.prefix)


def source_of(options: argparse.Namespace) -> str:
    """Return where the URL of the store comes from, which is ``--redis``, the name of a variable or ``the default``."""
    if options.redis:
        return "--redis"
    name = url_variable(os.environ)
    return name if os.environ.get(name) else "the default"


def names_of(options: argparse.Namespace) -> dict[str, str]:
    """Return the option or variable from which each setting comes, for errors of what :func:`settings_of` returns."""
    given = {"url": "--redis" if options.redis else None, "prefix": "--prefix" if options.prefix else None}
    return {**variables(os.environ), **{name: option for name, option in given.items() if option}}
