"""How the store is reached: connections, topologies and clients."""
