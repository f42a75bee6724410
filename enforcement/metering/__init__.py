"""
Read what requests to language models may cost, and what their answers did cost.

Everything here is pure: bytes and values go in, values come out. Nothing opens a connection, a file or a clock.
"""
