"""Export the :class:`~enforcement.stats.Stats` of a limiter. Each exporter needs the extra of its name."""
