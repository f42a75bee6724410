"""What the control plane and tools ask of the store."""
