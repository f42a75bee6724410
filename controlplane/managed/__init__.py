"""Objects that are managed from files, and how their pages say so."""
