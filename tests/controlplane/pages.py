"""What the pages of the admin say."""

import re
from typing import Any


def html_of(response: Any) -> str:
    """Return the HTML of a page that was found."""
    assert response.status_code == 200, response.headers
    return response.content.decode()


def text_of(response: Any) -> str:
    """Return what a page says, without elements and scripts."""
    return words(response.content.decode())


def words(html: str) -> str:
    """Return what HTML says, without elements and scripts."""
    return re.sub(r"\s+", " ", re.sub(r"<script.*?</script>|<[^>]*>", " ", html, flags=re.S)).strip()
