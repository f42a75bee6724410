"""
Chats and pagers, which apprise knows by the scheme of a URL.

Only the services in the setting ALERT_SERVICES are allowed. The usual ones have a fixed host each, so that nobody sends
to an address inside the network by them.
"""

from typing import TYPE_CHECKING

from django.conf import settings

from controlplane.operations.webhooks.targets import MAX_URL_LENGTH, Refused

# To connect, and again for each read.
SECONDS = 4.0

if TYPE_CHECKING:
    from apprise import NotifyBase


def check(url: str) -> str:
    """Return the name of the service that a URL is for, or raise Refused. The message does not have the URL."""
    if len(url) > MAX_URL_LENGTH:
        raise Refused(f"Must have at most {MAX_URL_LENGTH} characters, got {len(url)}.")
    name, separator, _ = url.partition("://")
    name = name.lower()
    if not separator or name not in settings.ALERT_SERVICES:
        raise Refused(f"Must begin with the name of an allowed service: {', '.join(settings.ALERT_SERVICES)}, and ://.")
    if not url.isascii() or not url.isprintable() or _service(url) is None:
        raise Refused(f"Must be a URL for {name} as the documentation of apprise has it, without a template.")
    return name


def notify(url: str, title: str, text: str) -> bool:
    """Send a message to a service, and return whether the service has accepted it."""
    service = _service(url)
    if service is None:
        return False
    return bool(service.notify(body=text or title, title=title))


def _service(url: str) -> "NotifyBase | None":
    """Return the service of a URL, or None if apprise cannot read it, or if it would read a file or another URL."""
    # Imported only where a service is used, because it takes a third of a second.
    from apprise import Apprise, AppriseAttachment

    service = Apprise.instantiate(url, suppress_exceptions=True)
    if service is None:
        return None
    # Slack, Discord and Telegram fill in a template of the URL, which may name a file of this server or an address
    # inside the network.
    if any(isinstance(value, AppriseAttachment) and len(value) for value in vars(service).values()):
        return None
    # Whatever the URL says of these.
    service.verify_certificate, service.redirects = True, False
    service.socket_connect_timeout = service.socket_read_timeout = SECONDS
    return service
