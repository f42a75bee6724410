"""The second step of a change that somebody feels: its review is posted with a decision."""

from html.parser import HTMLParser

# The rows of a list, of which each has a field.
TICKED = "_selected_action"


class ReviewForm(HTMLParser):
    """The fields of a review, as a browser posts them."""

    def __init__(self, response):
        super().__init__()
        self.fields = {}
        self.feed(response.content.decode())

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag == "input" and "name" in found and (found.get("type") != "radio" or "checked" in found):
            if found["name"] == TICKED:
                self.fields.setdefault(TICKED, []).append(found["value"])
            else:
                self.fields[found["name"]] = found.get("value", "")


def enforce(client, response, reason="reviewed", **options):
    """Confirm the review that *response* must be, with a reason, so that the change is enforced as it was typed."""
    page = response.content.decode()
    assert (response.status_code, "Nothing is saved yet." in page) == (200, True), page
    decision = {"_start": "enforce", "change_reason": reason}
    options = {"QUERY_STRING": response.request["QUERY_STRING"], **options}
    return client.post(response.request["PATH_INFO"], ReviewForm(response).fields | decision, **options)
