"""What can be said of a page without a browser: faults of its HTML, and which classes and scripts it has."""

from html.parser import HTMLParser

FIELDS = ("input", "select", "textarea")
NAMING = ("aria-label", "aria-labelledby", "title", "placeholder")


class Markup(HTMLParser):
    """Notes in ``faults`` what has no name, no label or an id twice, in ``kinds`` its classes and scripts."""

    EMPTY = ("meta", "link", "img", "br", "hr", "input", "source")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.kinds: set[object] = set()
        self._around: list[str] = []
        self._ids: set[str] = set()
        self._labels: set[str] = set()
        self._fields: list[tuple[str, str]] = []
        self._named: list[tuple[str, str, list[str]]] = []  # links, buttons and headings that are open, with their text
        self._seen: set[str] = set()
        self.feed(html)
        self.whole = "<html" in html
        if self.whole:
            self.faults += [f"no <{tag}>" for tag in ("title", "h1") if tag not in self._seen]
        self.faults += [f"no label: {shown}" for shown, key in self._fields if key not in self._labels]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        shown = " ".join((self.get_starttag_text() or "").split())
        self._note_kinds(tag, found)
        if tag == "html" and not found.get("lang"):
            self.faults.append("no language")
        if (key := found.get("id")) and "template" not in self._around:
            if key in self._ids:
                self.faults.append(f"id twice: {shown}")
            self._ids.add(key)
        if tag == "label":
            self._labels.add(found.get("for", ""))
        hidden = found.get("type") in ("hidden", "submit", "button") or "hidden" in (*found, found.get("class"))
        if tag in FIELDS and not hidden and "label" not in self._around and not any(map(found.get, NAMING)):
            self._fields.append((shown, found.get("id") or "none"))
        if tag == "img" and "alt" not in found:
            self.faults.append(f"no text: {shown}")
        if found.get("alt") or any(map(found.get, NAMING)):
            self.handle_data("named")
        if tag not in self.EMPTY:
            self._around.append(tag)
        if tag in ("a", "button", "h1", "title") and "svg" not in self._around:
            # What a script fills in has its name from the script.
            named = any(map(found.get, NAMING)) or any("x-" in name or name.startswith(":") for name in found)
            self._named.append((tag, shown, ["named"] if named else []))

    def handle_endtag(self, tag: str) -> None:
        if self._named and self._named[-1][0] == tag:
            _, shown, texts = self._named.pop()
            if "".join(texts).strip():
                self._seen.add(tag)
            else:
                self.faults.append(f"no name: {shown}")
        while self._around and self._around.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        for _, _, texts in self._named:
            texts.append(data)
        if not {"script", "style", "code", "pre"} & set(self._around) and any(mark in data for mark in ("{%", "{{")):
            self.faults.append(f"template: {data.strip()[:80]}")

    def _note_kinds(self, tag: str, found: dict[str, str]) -> None:
        """Note scripts and stylesheets, and our own classes. Others are the theme's."""
        self.kinds |= {one for one in found.get("class", "").split() if one.startswith("sg")}
        if tag in ("script", "link"):
            self.kinds.add(found.get("src") or (found.get("rel") == "stylesheet" and found["href"]))
