"""
A proof of metering by two ledgers.

A fake provider writes an invoice for each request that it would charge for. Three proxies meter the same requests and
write how each was settled. Processes and the store are killed meanwhile. Afterwards the ledgers are compared with each
other and with the counters of the store. No proxy imports this package.
"""
