"""The bytes of an answer: encodings, events, and events that resemble each other."""
