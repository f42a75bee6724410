"""
Texts that are kept encrypted, because they are needed in clear to send something.

The key follows from SECRET_KEY, so a backup of the database alone reads none of them.
"""

import base64
import hashlib
import hmac
from typing import TYPE_CHECKING

from controlplane.core.secret_keys import secret_keys

if TYPE_CHECKING:
    from cryptography.fernet import MultiFernet


class UnreadableError(Exception):
    """Raised for a text that was sealed with another SECRET_KEY."""


def seal(text: str) -> str:
    """Return a text encrypted."""
    return _fernet().encrypt(text.encode()).decode()


def unseal(sealed: str) -> str:
    """Return a sealed text in clear, or raise UnreadableError."""
    from cryptography.fernet import InvalidToken

    try:
        return _fernet().decrypt(sealed.encode()).decode()
    except InvalidToken:
        raise UnreadableError from None


def _fernet() -> "MultiFernet":
    # Imported only where something is sealed, because few installations do that.
    from cryptography.fernet import Fernet, MultiFernet

    derived = [hmac.digest(key.encode(), b"sluicegate sealed texts", hashlib.sha256) for key in secret_keys()]
    return MultiFernet([Fernet(base64.urlsafe_b64encode(key)) for key in derived])
