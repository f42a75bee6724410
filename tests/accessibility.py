"""Axe in a page that is open: what keeps people from reading or using it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from tests.scale import scale

GRAVE = ("critical", "serious")
OF_COLOURS = ("color-contrast", "link-in-text-block")
"""The rules that a page can break in one light and keep in another."""

_SCRIPT = Axe().axe_script
# Looking for what is behind a text takes six times as long as all other rules together. An element that has the tags,
# classes, styles and states of one beside it has its colours, too. So has one of another page, if the elements around
# and before it are the same. Rules for every second or for the last element of several may give it others, so these
# count as different.
_MARK_ALIKE = """known => {
    const states = ['class', 'style', 'type', 'role', 'aria-current', 'aria-expanded', 'aria-selected', 'aria-pressed',
                    'aria-checked', 'aria-disabled', 'aria-invalid'];
    // Axe does not judge the colours of a single letter.
    const letters = node => node.nodeType === Node.TEXT_NODE ? node.data.trim().length : 0;
    const own = element => [element.tagName, ...element.getAttributeNames(),
                            ...states.map(name => element.getAttribute(name)),
                            element.checked, element.selected, element.open,
                            Math.min(2, Math.max(0, ...[...element.childNodes].map(letters)))].join();
    const alike = [], shape = element => {
        const seen = new Set(), children = [...element.children], inner = children.map(shape);
        inner.forEach((found, i) => {
            const key = `${found} ${i % 2} ${i === children.length - 1}`;
            if (seen.has(key)) alike.push(children[i], ...children[i].querySelectorAll('*'));
            seen.add(key);
        });
        return `${own(element)} (${inner})`;
    };
    const hash = text => {
        let a = 0xdeadbeef, b = 0x41c6ce57;
        for (let i = 0; i < text.length; i++) {
            a = Math.imul(a ^ text.charCodeAt(i), 2654435761);
            b = Math.imul(b ^ text.charCodeAt(i), 1597334677);
        }
        return (a >>> 0) * 2097152 + (b >>> 11);
    };
    const former = new Set(JSON.parse(known)), now = new Set(), place = (element, around) => {
        const before = element.previousElementSibling, id = element.id.replace(/[0-9]+/g, '');
        const here = hash([around, own(element), id, before && own(before), !element.nextElementSibling,
                           [...element.parentNode.children].indexOf(element) % 2,
                           element.checkVisibility({opacityProperty: true, visibilityProperty: true})].join('|'));
        if (former.has(here)) alike.push(element);
        now.add(here);
        [...element.children].forEach(child => place(child, here));
    };
    document.querySelectorAll('[data-alike]').forEach(element => element.removeAttribute('data-alike'));
    shape(document.documentElement);
    const sheets = [...document.styleSheets].map(one => one.href);
    if (known !== 'null') place(document.documentElement, hash([innerWidth, ...sheets].join()));
    alike.forEach(element => element.setAttribute('data-alike', ''));
    axe.configure({rules: [{id: 'color-contrast', selector: '*:not([data-alike])'},
                           {id: 'link-in-text-block', selector: 'a[href]:not([data-alike])'}]});
    return JSON.stringify([...now]);
}"""
# Only violations are returned: to hand over what passed takes longer than to find it.
# A small run does without rules that are mild by themselves, and does not load all stylesheets again for the rule of
# turned screens, which takes as long as many others.
_RUN = """async ([rules, without, isFull]) => {
    const isOff = rule => !isFull && !rules.length && ['minor', 'moderate'].includes(rule.impact);
    const off = [...without, ...axe._audit.rules.filter(isOff).map(rule => rule.id)];
    const options = {resultTypes: ['violations'], preload: isFull, ...(rules.length ? {runOnly: rules} : {}),
                     rules: Object.fromEntries(off.map(rule => [rule, {enabled: false}]))};
    return (await axe.run(options)).violations;
}"""


def graves(
    page: Page, rules: Sequence[str] = (), *, without: Sequence[str] = (), known: set[int] | None = None
) -> list[dict[str, Any]]:
    """
    Return the critical and serious violations of some rules, or of all if none are named, but for those *without*.

    The colours of elements that are alike are judged once, but in a full run.

    Args:
        known: Which elements of other pages were judged with their colours. Those of this page are added.
    """
    if page.evaluate("typeof axe") == "undefined":
        page.evaluate(_SCRIPT)
    if scale(True, False):
        # As texts, because Playwright wraps each value of a list.
        present = page.evaluate(_MARK_ALIKE, "null" if known is None else json.dumps([*known]))
        if known is not None:
            known.update(json.loads(present))
    found = page.evaluate(_RUN, [list(rules), list(without), scale(False, True)])
    return [violation for violation in found if violation["impact"] in GRAVE]
