"""
The function library that decides inside the store.

The store keeps it as part of its data: a promoted replica has it, and every language calls it by name. Its name carries
the version of its interface; a change that an older caller would not understand gets a new one.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Final

VERSION: Final = 2
LIBRARY_NAME: Final = f"sluicegate_{VERSION}"

_PARTS: Final = (
    "algorithms.lua",
    "decide.lua",
    "enrol.lua",
    "slots.lua",
    "lease.lua",
    "checkpoint.lua",
    "publish.lua",
    "register.lua",
)


def function(verb: str) -> str:
    """Return the name under which the store knows a function, by its verb: decide, lease, settle ..."""
    return f"sg{VERSION}_{verb}"


@cache
def library_source() -> str:
    """Return the source to give to ``FUNCTION LOAD REPLACE``."""
    here = files(__package__)
    parts = [here.joinpath(part).read_text(encoding="utf-8") for part in _PARTS]
    return "\n".join([f"#!lua name={LIBRARY_NAME}", *parts])
