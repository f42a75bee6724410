"""A person at a browser: goes through pages, looks at them in every light and width, and notes what is wrong."""

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from zlib import crc32

from django.conf import settings
from django.contrib.auth.models import User
from django.test import Client
from playwright.sync_api import ConsoleMessage, Locator, Page, Request, expect
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from tests.accessibility import graves
from tests.scale import scale

# A busy machine needs longer than the usual five seconds. It costs nothing where all is well.
expect.set_options(timeout=60_000)

LIGHTS = ["light", "dark"]
WIDE, NARROW = {"width": 1440, "height": 900}, {"width": 320, "height": 720}

# A colour that is still changing fails the rule of contrast. A transition begins some frames after what causes it.
AT_REST = """async () => {
    const frame = () => new Promise(done => requestAnimationFrame(done));
    for (let calm = 0; calm < 3; calm++) {
        await frame();
        const moving = document.getAnimations().filter(animation => animation.playState === 'running');
        if (moving.length) calm = 0;
        await Promise.all(moving.map(animation => animation.finished.catch(() => 0)));
    }
}"""


# Drawing each step of a transition takes longer than all else that these tests do. What is blurred behind a dialog is
# next: a second of a processor.
STILL = """
    const still = new CSSStyleSheet();
    still.replaceSync('*, *::before, *::after { transition: none !important; animation: none !important;' +
                      'backdrop-filter: none !important; }');
    document.adoptedStyleSheets = [...document.adoptedStyleSheets, still];
"""


# A text of which each line has a few letters stands in a column that something else has made too narrow.
SQUEEZED = """() => {
    const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
        const text = walk.currentNode.textContent.trim(), range = document.createRange();
        if (text.length < 8 || walk.currentNode.parentElement.clientWidth === 1) continue;  // or not to be seen
        range.selectNodeContents(walk.currentNode);
        const lines = new Set([...range.getClientRects()].map(box => Math.round(box.top))).size;
        if (lines > 2 && text.length / lines < 5) found.push(text.slice(0, 80));
    }
    return found;
}"""

_known: set[int] = set()
"""What pages of this run have in common, so that its colours need to be judged once."""


class Walker:
    """Drives one page; ``faults`` holds every console error and every request to another host."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        self.faults: list[str] = []
        self.looked = 0
        folder = os.environ.get("SLUICEGATE_SCREENSHOTS", "")
        self.folder = Path(folder) if folder else None
        page.set_viewport_size(WIDE)
        page.add_init_script(STILL)
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.faults.append(f"script: {error}"))
        page.on("request", self._on_request)
        page.on("dialog", lambda dialog: dialog.accept())

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.faults.append(f"console at {self.page.url}: {message.text} ({message.location.get('url')})")

    def _on_request(self, request: Request) -> None:
        if urlsplit(request.url).scheme in ("http", "https") and not request.url.startswith(self.url):
            self.faults.append(f"request to {request.url}")

    def open(self, path: str) -> None:
        self.page.goto(self.url + path)
        self.page.wait_for_load_state("load")

    def log_in(self, name: str, password: str) -> None:
        self.open("/admin/login/")
        self.page.get_by_label("Username").fill(name)
        self.page.get_by_label("Password").fill(password)
        self.page.get_by_role("button", name="Log in").click()

    def enter(self, name: str) -> None:
        """Have the session of a user, for tests that neither look at the form nor at the page after it."""
        client = Client()
        client.force_login(User.objects.get(username=name))
        cookie = client.cookies[settings.SESSION_COOKIE_NAME]
        self.page.context.add_cookies([{"name": cookie.key, "value": cookie.value, "url": self.url}])

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()

    def choose(self, label: str, text: str) -> None:
        """Pick from one of the boxes that search the server."""
        field = self.page.locator("label", has_text=re.compile(rf"^{label}")).first.get_attribute("for")
        self.page.locator(f"#{field} + .select2 .select2-selection").click()
        self.page.locator(".select2-search__field").last.fill(text)
        self.page.locator(".select2-results__option", has_text=text).first.click()

    def limit(self, name: str) -> Locator:
        """Return the line of a limit in the form of a policy, which opens and folds it."""
        return self.page.locator(".sg-limit > summary", has=self.page.get_by_text(name, exact=True))

    def reads(self, text: str) -> None:
        expect(self.page.locator("body")).to_contain_text(text)

    def glance(self, name: str, light: str = "") -> str:
        """Check the page on a wide screen, and take its picture: in both lights, or in a small run in one of them."""
        # By the name, so that it is the same one in every run.
        chosen = scale([light or LIGHTS[crc32(name.encode()) % 2]], LIGHTS)
        self.looked += 1
        name = f"{self.looked:02d}-{name}"
        for light in chosen:
            self.page.evaluate("isDark => document.documentElement.classList.toggle('dark', isDark)", light == "dark")
            self._judge(f"{name}-{light}")
        self.page.evaluate("document.documentElement.classList.remove('dark')")
        self._fits(name, WIDE["width"])
        return name

    def look(self, name: str, *, elsewhere: bool = False, light: str = "") -> None:
        """
        Check the page in both lights and on narrow screens, and take its pictures.

        Args:
            elsewhere: Another test, such as test_every_page.py, judges all that the page has. A small run leaves it to
                that test.
            light: The one in which a small run checks the page. Otherwise, its name decides.
        """
        if scale(elsewhere, False):
            return
        name = self.glance(name, light)
        # Read here and not above, because a conftest.py may be imported before the size of the run is known.
        for width in scale([320], [390, 320]):
            self.page.set_viewport_size(NARROW | {"width": width})
            self._picture(f"{name}-{width}")
            self._fits(name, width)
        self.page.set_viewport_size(WIDE)

    def _fits(self, name: str, width: int) -> None:
        """Note if the page has to be scrolled sideways, or if it has a text of a few letters a line."""
        try:  # a chart is drawn anew some frames after the window has changed
            self.page.wait_for_function("limit => document.documentElement.scrollWidth <= limit", arg=width)
        except PlaywrightTimeout:
            found = self.page.evaluate("document.documentElement.scrollWidth")
            self.faults.append(f"{name}: {found} px wide on a screen of {width}")
        self.faults += [f"{name}: squeezed at {width} px: {text}" for text in self.page.evaluate(SQUEEZED)]

    def graves(self) -> list[str]:
        """Return what keeps people from using the page, but for colours that another page of this run has, too."""
        return [described(violation) for violation in graves(self.page, known=_known)]

    def _judge(self, name: str) -> None:
        self._picture(name)
        self.faults += [f"{name}: {violation}" for violation in self.graves()]

    def _picture(self, name: str) -> None:
        self.page.evaluate(AT_REST)
        if self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=self.folder / f"{name}.png", full_page=True)


def described(violation: dict[str, Any]) -> str:
    nodes = [re.sub(r"\s+", " ", node["html"])[:160] for node in violation["nodes"][:3]]
    return f"{violation['impact']} {violation['id']} x{len(violation['nodes'])}: {' | '.join(nodes)}"
