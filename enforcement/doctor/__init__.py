"""
Examine a store as a limiter would find it, and report what is wrong and what to do.

All checks use the account in the URL. A check that this account is not permitted to make is reported as ``unseen``,
which is not a problem. The doctor writes one counter of its own, which expires within a minute, and nothing else.
"""

from enforcement.doctor.checkup import Checkup, StoreUnreachable, examine
from enforcement.doctor.findings import Finding, Level

__all__ = ["Checkup", "Finding", "Level", "StoreUnreachable", "examine"]
