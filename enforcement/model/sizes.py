"""
How long and how many: every size that a request, an operator or a developer can reach, stated once.

What is longer is refused with the name of the field and the rule; nothing is cut short, for then it would name another.
"""

from __future__ import annotations

from typing import Final

MAX_TOKEN_LENGTH: Final = 512
"""Characters of a credential. A longer one is no token: it is neither hashed nor looked up."""
MAX_ATTRIBUTES: Final = 32
"""Attributes that a request may carry."""
MAX_ATTRIBUTE_NAME_LENGTH: Final = 64
"""Characters of an attribute's name."""
MAX_ATTRIBUTE_LENGTH: Final = 1_024
"""Characters of an attribute's value."""
MAX_CODE_KEY_LENGTH: Final = 1_024
"""Characters of what limits in code count by."""
MAX_LIMITS_PER_REQUEST: Final = 64
"""Limits in code of one call."""
MAX_LIMITS_PER_POLICY: Final = 32
"""Limits of one policy; three policies fall on a request at most."""
MAX_PARTITIONS: Final = 4
"""Attributes that one limit may be partitioned by."""
MAX_PREFIX_LENGTH: Final = 16
"""Characters that all keys of the store begin with."""
MAX_INSTANCE_LENGTH: Final = 80
"""Characters of an instance's name."""
MAX_KEY_BYTES: Final = 128
"""Bytes of a key in the store. It follows from the others; a test holds every key to it."""
