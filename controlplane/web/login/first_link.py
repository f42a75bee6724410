"""The one-time link by which the first account is created. It is signed, so nothing has to be stored."""

from urllib.parse import urlencode

from django.core import signing

PATH = "/admin/first-account/"
# Long enough to read the terminal later, and short for a link that stays in its history.
VALID_SECONDS = 24 * 3600
_SALT = "sluicegate.first-account"


def first_link(base_url: str, secret_key: str | None = None) -> str:
    """
    Return an address below *base_url* at which the first account can be created.

    Args:
        secret_key: The key of the server. None means that of the settings.
    """
    return f"{base_url.rstrip('/')}{PATH}?{urlencode({'key': signing.dumps('first', key=secret_key, salt=_SALT)})}"


def is_valid(key: str) -> bool:
    """Return whether this server has signed the key of a link within the last day."""
    try:
        return bool(signing.loads(key, salt=_SALT, max_age=VALID_SECONDS) == "first")
    except signing.BadSignature:
        return False
