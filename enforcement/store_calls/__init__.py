"""Build the calls with which the control plane and tools use the store."""
