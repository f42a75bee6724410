"""States as an icon and a word. The colour only repeats what they say."""

from django.utils.html import format_html
from django.utils.safestring import SafeString


def tag(text: str, icon: str, kind: str = "", title: str = "") -> SafeString:
    """
    Return HTML that shows a state.

    Args:
        icon: The name of a symbol of the theme's font, which screen readers pass over.
        kind: "good", "warn", "bad", "shadow" or empty.
        title: What is said when the pointer rests on it.
    """
    html = '<span class="sg-tag{}"{}>{}{}</span>'
    drawn = format_html('<span class="material-symbols-outlined sg-icon" aria-hidden="true">{}</span>', icon)
    rest = format_html(' title="{}"', title) if title else ""
    return format_html(html, f" sg-{kind}" if kind else "", rest, drawn, text)
