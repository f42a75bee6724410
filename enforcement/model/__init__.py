"""What a limit is: values and arithmetic, without I/O."""
