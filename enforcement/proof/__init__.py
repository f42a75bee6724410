"""
A proof by counting: what a load wrote down, decision by decision, against what was promised and what the store counted.

``python -m enforcement.proof load`` asks a store of yours and writes a ledger for each process;
``python -m enforcement.proof verify`` reads the ledgers and decides every claim that has a number in it. Nothing
here is imported by a proxy.
"""
