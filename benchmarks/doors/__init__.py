"""Figures of the doors for other proxies: the decision service, real proxies that ask it, and our reverse proxy."""
