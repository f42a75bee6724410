"""What has a counter of its own, and the spans of previews."""

from datetime import timedelta

TOKEN, PROJECT, EVERYTHING = "token", "project", "everything"
Caller = tuple[str, str]
"""TOKEN or PROJECT with its id, or EVERYTHING with none."""

DAY = timedelta(hours=24)
WEEK = timedelta(days=7)
