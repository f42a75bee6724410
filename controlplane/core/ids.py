import uuid_utils

# Crockford's alphabet leaves out i, l, o and u, which are easily misread.
ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
LENGTH = 26


def new_id(prefix: str) -> str:
    """
    Return ``prefix_`` followed by a UUIDv7 in 26 characters.

    Ids with one prefix sort by the time at which they were made.
    """
    number = uuid_utils.uuid7().int
    digits = []
    for _ in range(LENGTH):
        number, digit = divmod(number, 32)
        digits.append(ALPHABET[digit])
    return f"{prefix}_{''.join(reversed(digits))}"
