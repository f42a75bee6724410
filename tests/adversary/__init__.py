"""
A provider with an invoice of its own, and consumers who try to get more from it than their budget holds.

    python -m tests.adversary --help
"""
