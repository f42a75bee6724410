"""
The largest sizes that a request, an operator or a developer can use.

A value that is too long is refused, with the name of the field and the rule. It is never cut, because the shorter value
could name something else.
"""

from __future__ import annotations

from typing import Final

MAX_NUMBER: Final = 2**53 - 1
"""The largest quota, cost or count. Lua computes with doubles, which hold every integer up to here exactly."""
MAX_TOKEN_LENGTH: Final = 512
"""Characters of a credential. A longer string is neither hashed nor looked up."""
MAX_ATTRIBUTES: Final = 32
"""Attributes of a request."""
MAX_ATTRIBUTE_NAME_LENGTH: Final = 64
"""Characters of an attribute's name."""
MAX_ATTRIBUTE_LENGTH: Final = 1_024
"""Characters of an attribute's value."""
MAX_LABELS: Final = 16
"""Labels of a token."""
MAX_LABEL_NAME_LENGTH: Final = MAX_ATTRIBUTE_NAME_LENGTH - len("label.")
"""Characters of a label's name. Limits name a label by ``label.`` and its name."""
MAX_LABEL_LENGTH: Final = 128
"""Characters of a label's value."""
MAX_CODE_KEY_LENGTH: Final = 1_024
"""Characters of the key that limits in code count by."""
MAX_LIMITS_PER_REQUEST: Final = 64
"""Limits in code of one call."""
MAX_SLOTS_PER_REQUEST: Final = 10_000
"""Slots of ``concurrency`` limits that one request may take, together, as each is an entry in the store."""
USUAL_RESERVATION_SHARE: Final = 50
"""The part of a project's reservations that one token may have, in percent. ``lua/reservations.lua`` has it, too."""
MAX_LIMITS_PER_POLICY: Final = 32
"""Limits of one policy. At most three policies apply to a request."""
MAX_PARTITIONS: Final = 4
"""Attributes that one limit may be partitioned by."""
MAX_PARTITION_VALUE_LENGTH: Final = 256
"""Characters of an attribute's value that an override is for."""
MAX_NAME_LENGTH: Final = 64
"""Characters of a limit's name."""
MAX_UNIT_LENGTH: Final = 32
"""Characters of a unit."""
MAX_ZONE_LENGTH: Final = 64
"""Characters of the name of a time zone."""
MAX_MATCH_RULES: Final = 16
"""Methods, and attributes, that one limit may match on."""
MAX_PATTERNS_PER_RULE: Final = 64
"""Patterns of which a matching attribute has to fit one."""
MAX_PATTERN_LENGTH: Final = 256
"""Characters of a pattern."""
MAX_PREFIX_LENGTH: Final = 16
"""Characters of the prefix of all keys of the store."""
MAX_INSTANCE_LENGTH: Final = 80
"""Characters of an instance's name."""
MAX_FLEET_SIZE: Final = 100_000
"""Instances of one fleet."""
MAX_KEY_BYTES: Final = 128
"""Bytes of a key in the store. This follows from the other sizes."""
MAX_DOCUMENT_BYTES: Final = 65_536
"""Bytes of a published document."""
MAX_ITEMS_PER_LIST: Final = 1_000
"""Items of a list in a document, such as its overrides."""
MAX_STRING_LENGTH: Final = 255
"""Characters of a string in a document, such as a name."""
