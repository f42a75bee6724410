"""Connect to a cluster, find the node of each slot, and watch for nodes that are unavailable."""
