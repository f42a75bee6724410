"""Find the counters that a request is charged to, encode the calls to the store, and read the replies. No I/O."""
