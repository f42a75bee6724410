"""Keep what one process has loaded, cached and counted."""
