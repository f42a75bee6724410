"""Which limits matched a request of which some attributes are known, and why the others did not."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from enforcement.model.limit_fields import attribute
from enforcement.model.limits import Limit
from enforcement.model.matching import LABEL_PREFIX, AttributeRule, Match, is_label
from enforcement.plan.rules import Rule, Subject, rules_of

YES, NO, UNKNOWN = "yes", "no", "unknown"


@dataclass(frozen=True, slots=True)
class Matched:
    """
    One limit of a policy that is attached to the token, the project or everything.

    Attributes:
        rule: The limit with its override. None if the labels of the token do not fit.
        limit: The limit, with its override applied.
        matches: "yes", "no", or "unknown", if it looks at an attribute that is not known.
        why: The reason in words. Empty for "yes".
    """

    scope: str
    policy: str
    policy_id: str
    limit: Limit
    rule: Rule | None
    matches: str
    why: str = ""

    @property
    def name(self) -> str:
        return f"{self.policy}/{self.limit.name}"

    @property
    def identity(self) -> tuple[str, str, str]:
        """The part of a limit that stays the same over the revisions."""
        return self.scope, self.policy_id, self.limit.name


def matched(subject: Subject, attributes: Mapping[str, str], now_us: int) -> list[Matched]:
    """Return every limit of the policies that are attached to a subject, in the order in which they are checked."""
    rules = {(rule.scope, rule.policy.id, rule.limit.name): rule for rule in rules_of(subject, now_us)}
    result = []
    for scope, *_, policy_id in subject.attached():
        policy = subject.policies.get(policy_id or "")
        for limit in policy.limits if policy else ():
            assert policy is not None
            rule = rules.get((scope, policy.id, limit.name))
            rule = rule and rule.of(attributes)
            limit = rule.limit if rule else limit
            matches, why = judged(limit, attributes) if rule else (NO, _labels_differ(limit, subject))
            result.append(Matched(scope, policy.slug, policy.id, limit, rule, matches, why))
    return result


def judged(limit: Limit, attributes: Mapping[str, str]) -> tuple[str, str]:
    """Return whether a limit, whose labels fit, matches a request with these attributes, and why in words."""
    unknown = [name for name in limit.partition_by if not is_label(name) and name not in attributes]
    for name, match, words in _rules(limit.match):
        if name not in attributes:
            unknown.append(name)
        elif not fits(match, attributes):
            return NO, f"{name} is not {words}"
    if unknown:
        return UNKNOWN, f"{' and '.join(dict.fromkeys(unknown))} of the request is not known"
    return YES, ""


def fits(match: Match, attributes: Mapping[str, str]) -> bool:
    matches = match.compile()
    return matches is None or matches(attributes)


def _rules(match: Match) -> Iterator[tuple[str, Match, str]]:
    """Yield each rule about the request: the attribute, the rule alone, and its value in words."""
    if match.methods:
        yield "method", Match(methods=match.methods), " or ".join(match.methods)
    if match.path:
        yield "path", Match(path=match.path, published=True), match.path
    for name, rule in match.attributes.items():
        if not is_label(name):
            yield name, Match(attributes={name: rule}, published=True), _words(rule)


def _words(rule: AttributeRule) -> str:
    return " or ".join(rule) if isinstance(rule, tuple) else rule


def _labels_differ(limit: Limit, subject: Subject) -> str:
    labels = subject.token.labels if subject.token else {}
    given = {LABEL_PREFIX + name: value for name, value in labels.items()}
    for name in (*limit.partition_by, *limit.match.attributes):
        if is_label(name) and name not in given:
            return f"{attribute(name)} is not set"
    wrong = [name for name, rule in limit.match.attributes.items() if is_label(name) and not _fits(name, rule, given)]
    return f"{attribute(wrong[0])} is not {_words(limit.match.attributes[wrong[0]])}" if wrong else "its labels differ"


def _fits(name: str, rule: AttributeRule, labels: Mapping[str, str]) -> bool:
    return Match(attributes={name: rule}, published=True).fits(labels)
