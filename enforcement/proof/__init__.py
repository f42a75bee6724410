"""
A proof by counting, for a store of your own.

``python -m enforcement.proof load`` sends requests to a store, and each process writes every decision to a ledger.
``python -m enforcement.proof verify`` reads the ledgers and checks each claim that has a number in it. Optionally it
reads the counters of the store, too. No proxy imports this package.
"""
