"""Permits taken ahead of requests, and their upkeep."""
