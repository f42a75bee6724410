"""Define what a limit is, with values and arithmetic and without I/O."""
