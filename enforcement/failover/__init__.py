"""Deciding without the store, and charging it afterwards."""
