"""A cluster as a store: which node owns a slot, connections to the nodes, and a monitor that finds lost nodes."""
