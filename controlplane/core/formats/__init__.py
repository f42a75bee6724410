"""How Django writes dates and times where a page does not do it itself, by language."""
