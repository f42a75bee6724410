"""
How large a costly test is: small in every run, full before a release.

A test that has a costly form carries the marker ``proof`` and takes its numbers from ``scale``. ``pytest --proof -m
proof``, which is ``make proof``, runs the same function with the full numbers.
"""

import os
from typing import TypeVar

T = TypeVar("T")
VARIABLE = "SLUICEGATE_PROOF"
"""Set to 1 by ``--proof``. Worker processes inherit it."""


def scale(small: T, full: T) -> T:
    """
    Return a number, or a set of cases, of the size that this run asks for.

    Args:
        small: For every run; large enough that the defect in question still shows.
        full: For ``make proof``.
    """
    return full if os.environ.get(VARIABLE) == "1" else small
