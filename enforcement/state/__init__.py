"""What one process knows and has counted."""
