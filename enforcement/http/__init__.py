"""What every integration knows of HTTP. It finds the token and the attributes of a request, and answers denials."""
