"""Doors that read what a request to a provider may cost, and what its answer did cost, and charge that."""
