"""The second factor (2FA, MFA) of a log-in: TOTP codes of an authenticator app, and single-use recovery codes."""

import hashlib
import secrets
from base64 import b32encode
from typing import Any
from urllib.parse import quote

from django.conf import settings
from django.contrib.auth.models import User
from django.db import transaction
from django.utils import timezone
from django_otp.plugins.otp_static.models import StaticDevice, StaticToken
from django_otp.plugins.otp_totp.models import TOTPDevice

RECOVERY_CODES = 10
# Without letters and digits that look alike.
ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"
GROUPS, GROUP = 4, 4


def device_of(user: Any) -> TOTPDevice | None:
    """Return the authenticator that the user has to use at each log-in, or None if there is none."""
    return TOTPDevice.objects.filter(user=user.pk, confirmed=True).first()


def new_key() -> str:
    """Return a new random key of an authenticator as hexadecimal digits."""
    return secrets.token_hex(20)


def readable(key: str) -> str:
    """Return a key as people type it into an app: base32 in groups of four."""
    text = b32encode(bytes.fromhex(key)).decode()
    return " ".join(text[at : at + 4] for at in range(0, len(text), 4))


def address_of(user: User, key: str) -> str:
    """Return what an app reads from the picture: the key, with the names that it then shows."""
    issuer = quote(f"Sluicegate {settings.ENVIRONMENT_NAME}".strip())
    secret = readable(key).replace(" ", "")
    return f"otpauth://totp/{issuer}:{quote(user.get_username())}?secret={secret}&issuer={issuer}"


def enrol(user: User, key: str, code: str) -> TOTPDevice | None:
    """Save the authenticator with this key if it gave the code, and return it, or return None if it did not."""
    with transaction.atomic():
        # Two requests at once must not save two authenticators, of which the user would see one.
        User.objects.select_for_update().get(pk=user.pk)
        if device_of(user) is not None:
            return None
        device = TOTPDevice.objects.create(user=user, name="authenticator", key=key)
        if device.verify_token(digits_of(code)):
            return device
        transaction.set_rollback(True)
    return None


def new_recovery_codes(user: User) -> list[str]:
    """Replace the recovery codes of the user, of which only digests are stored, and return the new ones."""
    codes = [_recovery_code() for _ in range(RECOVERY_CODES)]
    with transaction.atomic():
        device, _ = StaticDevice.objects.get_or_create(user=user, defaults={"name": "recovery codes"})
        device.token_set.all().delete()
        StaticToken.objects.bulk_create(StaticToken(device=device, token=_digest(code)) for code in codes)
    return codes


def recovery_codes_left(user: User) -> int:
    return StaticToken.objects.filter(device__user=user, device__confirmed=True).count()


def verify(user: User, code: str) -> TOTPDevice | None:
    """
    Return the authenticator of the user if the code is right, which is one of the app or a recovery code, else None.

    A code is right once. After a wrong one, the next is checked after a second, then after two, four and so on.
    """
    with transaction.atomic():
        device = TOTPDevice.objects.select_for_update().filter(user=user, confirmed=True).first()
        if device is None:
            return None
        typed = digits_of(code)
        if typed.isdigit():
            return device if len(typed) == device.digits and device.verify_token(typed) else None
        recovery = StaticDevice.objects.select_for_update().filter(user=user, confirmed=True).first()
        return device if recovery is not None and recovery.verify_token(_digest(code)) else None


def wait_seconds(user: User) -> int:
    """Return after how many seconds the next code is checked, 0 for at once."""
    now, waits = timezone.now(), [0]
    for model in (TOTPDevice, StaticDevice):
        for device in model.objects.filter(user=user, confirmed=True):
            allowed, about = device.verify_is_allowed()
            if not allowed:
                waits.append(int((about["locked_until"] - now).total_seconds()) + 1)
    return max(waits)


def remove(user: User) -> bool:
    """Remove the authenticator and the recovery codes of the user, and return whether there were any."""
    with transaction.atomic():
        found = TOTPDevice.objects.filter(user=user).delete()[0]
        StaticDevice.objects.filter(user=user).delete()
    return found > 0


def digits_of(code: str) -> str:
    """Return a code without the spaces that apps show in it."""
    return "".join(code.split())


def _recovery_code() -> str:
    """Return a random code of about 80 bits, such as "k3fd-9amx-22pw-hq7c"."""
    groups = ("".join(secrets.choice(ALPHABET) for _ in range(GROUP)) for _ in range(GROUPS))
    return "-".join(groups)


def _digest(code: str) -> str:
    """Return what is stored of a recovery code, however its letters and hyphens are typed. The column has 16 places."""
    plain = "".join(letter for letter in code.lower() if letter.isalnum())
    return hashlib.sha256(plain.encode()).hexdigest()[:16]
