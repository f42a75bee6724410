"""Permits that a process takes ahead of requests."""
