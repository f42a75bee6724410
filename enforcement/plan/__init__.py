"""Which counters a request falls under, and what is asked of them."""
