"""Decisions on a cluster, and how far they scale."""
