"""Tools that keep lists of millions of rows fast. They import no app."""
