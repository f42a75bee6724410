"""
Assemble the function library that decides inside the store.

The library is part of the store's data, so a promoted replica has it, and every language calls its functions by name.
Their names contain the version of the interface. A change that older callers would not understand needs a new version.
"""

from __future__ import annotations

from functools import cache
from typing import Final

VERSION: Final = 3
LIBRARY_NAME: Final = f"sluicegate_{VERSION}"

_PARTS: Final = (
    "algorithms.lua",
    "decide.lua",
    "enrol.lua",
    "slots.lua",
    "reservations.lua",
    "lease.lua",
    "checkpoint.lua",
    "publish.lua",
    "register.lua",
)


def function(verb: str) -> str:
    """
    Return the name of a function in the store, such as ``sg3_decide``. *verb* is decide, lease, settle or another part
    of the library.
    """
    return f"sg{VERSION}_{verb}"


@cache
def library_source() -> str:
    """Return the source of the library for ``FUNCTION LOAD REPLACE``."""
    from importlib.resources import files  # many processes only call what is loaded already

    here = files(__package__)
    parts = [here.joinpath(part).read_text(encoding="utf-8") for part in _PARTS]
    return "\n".join([f"#!lua name={LIBRARY_NAME}", *parts])


def load_command() -> tuple[str, ...]:
    """Return the command that loads the library into a store, in the place of another library of this version."""
    return "FUNCTION", "LOAD", "REPLACE", library_source()
