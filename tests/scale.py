"""
How large a costly test is: small in every run, full before a release.

A test that has a costly form carries the marker ``proof`` and takes its numbers from ``scale``. ``pytest --proof -m
proof``, which is ``make proof``, runs the same function with the full numbers.
"""

import os
from typing import TypeVar

Number = TypeVar("Number", int, float)
VARIABLE = "SLUICEGATE_PROOF"
"""Set to 1 by ``--proof``. Worker processes inherit it."""


def scale(small: Number, full: Number) -> Number:
    """
    Return how large a test is in this run.

    Args:
        small: The number for every run; large enough that the defect in question would still show.
        full: The number for ``make proof``.
    """
    return full if os.environ.get(VARIABLE) == "1" else small
