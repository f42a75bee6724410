"""Decide requests, and run the background thread of a process."""
