"""Hold what one process knows and has counted."""
