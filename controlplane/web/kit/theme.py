"""How the theme of the admin is set up. The settings import it, so it imports no model."""

from django.conf import settings
from django.http import HttpRequest
from django.templatetags.static import static


def environment(request: HttpRequest) -> list[str] | None:
    """Return the text and the colour of the badge in the header, or None if the environment has no name."""
    name = settings.ENVIRONMENT_NAME
    if not name:
        return None
    kinds = {"prod": "danger", "stag": "warning", "test": "info", "dev": "success"}
    return [name, next((kind for start, kind in kinds.items() if name.lower().startswith(start)), "info")]


UNFOLD = {
    "SITE_TITLE": "Sluicegate",
    "SITE_HEADER": "Sluicegate",
    "SITE_SYMBOL": "water_lock",
    "SITE_URL": None,
    "SITE_FAVICONS": [
        {"rel": "icon", "type": "image/svg+xml", "href": lambda request: static("controlplane/favicon.svg")}
    ],
    "SHOW_HISTORY": True,
    "SHOW_VIEW_ON_SITE": False,
    "ENVIRONMENT": "controlplane.web.kit.theme.environment",
    "DASHBOARD_CALLBACK": "controlplane.web.overview.page.dashboard_callback",
    "STYLES": [
        lambda request: static("controlplane/admin.css"),
        lambda request: static("controlplane/pages.css"),
        lambda request: static("controlplane/sets.css"),
    ],
    "SCRIPTS": [
        # The first, because it listens to the same event as the next one.
        lambda request: static("controlplane/before_saving.js"),
        lambda request: static("controlplane/admin.js"),
        lambda request: static("controlplane/paste_search.js"),
    ],
    # Blue in place of the theme's purple. White on 600, and 500 on the dark background, have a contrast over 4.5 to 1.
    "COLORS": {
        "primary": {
            "50": "oklch(97% .014 254.604)",
            "100": "oklch(93.2% .032 255.585)",
            "200": "oklch(88.2% .059 254.128)",
            "300": "oklch(80.9% .105 251.813)",
            "400": "oklch(70.7% .165 254.624)",
            "500": "oklch(66% .19 256)",
            "600": "oklch(50% .2 259)",
            "700": "oklch(45% .19 260)",
            "800": "oklch(40% .17 262)",
            "900": "oklch(35% .14 263)",
            "950": "oklch(28.2% .091 267.935)",
        },
    },
    "COMMAND": {"search_callback": "controlplane.web.kit.palette.search"},
    "SIDEBAR": {"show_search": True, "navigation": "controlplane.web.kit.menu.navigation"},
}
