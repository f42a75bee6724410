"""Callers that wait for permits, in the order of their arrival."""
