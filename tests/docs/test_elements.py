"""Pages that stand for others, since all of their elements are in them."""

from tests.docs.elements import Elements, few_with_all


def test_few_pages_have_every_kind_of_element():
    """A kind that one page alone has brings this page."""
    plain, classed = Elements("<p>a<br><b>c</b></p>").found, Elements('<p>a</p><p class="x">b</p>').found

    assert few_with_all({"a": plain, "b": classed, "c": plain & classed}) == ["a", "b"]


def test_an_element_is_another_one_in_other_surroundings():
    """Rules of style name what an element stands in, at any distance."""
    inside = Elements('<div class="x"><p><b>a</b></p></div>').found

    assert few_with_all({"a": Elements("<div><p><b>a</b></p></div>").found, "b": inside}) == ["a", "b"]
    assert inside == Elements('<div class="x"><p id="y"></p></div><div class="x"><p><b>c</b></p></div>').found - {
        ("div x", "p id")
    }
