"""HTTP for every integration. It finds the token and the attributes of a request, and answers denials."""
