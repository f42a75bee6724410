"""The secrets from which others are derived."""

from django.conf import settings
from django.utils.encoding import force_str


def secret_keys() -> list[str]:
    """Return the values that SECRET_KEY has and had, the present one first."""
    return [force_str(key) for key in (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)]
