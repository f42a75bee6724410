"""The kinds of elements of a page, and a choice of pages that have all of them."""

from collections.abc import Mapping
from html.parser import HTMLParser


class Elements(HTMLParser):
    """Notes each kind of element: its name, its class, its other attributes by name, and all that it stands in."""

    EMPTY = ("meta", "link", "img", "br", "hr", "input")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: set[object] = set()
        self._around: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        kind = " ".join([tag, *(str(value) if name == "class" else name for name, value in attrs)])
        self.found.add((*self._around, kind))
        if tag not in self.EMPTY:
            self._around.append(kind)

    def handle_endtag(self, tag: str) -> None:
        while self._around and self._around.pop().split()[0] != tag:
            pass


def few_with_all(found: Mapping[str, set[object]]) -> list[str]:
    """Return few pages that have, together, every kind of element that any page has."""
    chosen, missing = [], set().union(*found.values())
    while missing:
        chosen.append(max(found, key=lambda slug: len(found[slug] & missing)))
        missing -= found[chosen[-1]]
    return chosen
