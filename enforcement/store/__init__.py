"""Connect to the store, whatever its topology."""
