"""
The decision service, which proxies that are not written in Python ask before they pass a request on.

It is one ASGI application without a framework. ``sluicegate serve`` runs it.
"""
