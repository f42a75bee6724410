"""How many requests were decided, for whom and how, until the control plane has it."""
