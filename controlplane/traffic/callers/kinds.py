"""Owners of counters (token, project, everyone), and the spans of previews."""

from datetime import timedelta

TOKEN, PROJECT, ANONYMOUS, EVERYTHING = "token", "project", "anonymous", "everything"
Caller = tuple[str, str]
"""TOKEN with its id, PROJECT or ANONYMOUS with that of a project, or EVERYTHING with none."""

DAY = timedelta(hours=24)
WEEK = timedelta(days=7)
