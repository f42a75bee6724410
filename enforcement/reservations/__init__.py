"""Reservations that the store records, so that any process can settle them."""
