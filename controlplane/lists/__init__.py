"""What keeps lists of millions of rows fast. It imports no app."""
