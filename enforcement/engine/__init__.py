"""From a plan to its decision, and the background thread."""
