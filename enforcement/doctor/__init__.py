"""
Looking at a store as an enforcer would meet it, and saying what is wrong with it and what to do.

Everything is looked at with the rights of the account that is given; what that may not look at is said, and is no
fault. Nothing is written but one counter of its own, which expires within a minute.
"""

from enforcement.doctor.checkup import Checkup, Unreachable, examine
from enforcement.doctor.findings import Finding, Level

__all__ = ["Checkup", "Finding", "Level", "Unreachable", "examine"]
