"""Telling a limiter's :class:`~enforcement.stats.Stats` to others; each exporter needs the extra of its name."""
