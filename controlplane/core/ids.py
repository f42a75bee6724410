import uuid_utils

# Crockford's alphabet: no i, l, o or u, so an id survives being read out aloud.
ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
LENGTH = 26


def new_id(prefix: str) -> str:
    """Return ``prefix_`` and a UUIDv7 as 26 characters: ids of one kind sort by the time they were made."""
    number = uuid_utils.uuid7().int
    digits = []
    for _ in range(LENGTH):
        number, digit = divmod(number, 32)
        digits.append(ALPHABET[digit])
    return f"{prefix}_{''.join(reversed(digits))}"
