"""
The admin over the rows of a large installation, and what each of its pages costs.

``python -m benchmarks admin`` runs it with a million tokens on PostgreSQL and prints the times. A test in
tests/controlplane/web/kit runs it with few rows, and counts queries and rows.
"""
