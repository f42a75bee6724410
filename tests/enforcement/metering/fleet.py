"""Plays the scenarios of ``tests/vectors/metering/`` on prices and on reservations."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings

from enforcement.metering.amounts import Usage
from enforcement.metering.charges import ReservationDenial, terms_of, unmetered_terms
from enforcement.metering.estimate import clamp, estimate_request
from enforcement.metering.price_documents import parse_prices
from enforcement.metering.settlement import DrainBounds, MeteredReservation, Settlement
from enforcement.model.limits import Limit
from enforcement.model.metered import Metering
from enforcement.model.sizes import MAX_NUMBER

FOLDER = Path(__file__).parent.parent.parent / "vectors" / "metering"
RESERVATION_POLICY = ("default_cap", "part_tokens", "clamp_at_least")
WINDOW = {"algorithm": "fixed_window", "calendar": "lifetime"}


def load(kind: str) -> list[dict[str, Any]]:
    """Return the scenarios of one kind, those of the other file of this kind too."""
    paths = sorted(FOLDER.glob(f"{kind}*.json"))
    return [vector for path in paths for vector in json.loads(path.read_text())["vectors"]]


def examples(count: int) -> settings:
    """Return the settings of a property; a busy machine takes longer for an example than Hypothesis expects."""
    return settings(max_examples=count, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def instant_us(text: str) -> int:
    seconds, _, fraction = text.removesuffix("Z").partition(".")
    whole = int(datetime.fromisoformat(f"{seconds}+00:00").timestamp())
    return whole * 1_000_000 + int(fraction.ljust(6, "0"))


def usage_of(data: dict[str, int] | None) -> Usage | None:
    return None if data is None else Usage(**data)


class Fleet:
    """Counters in memory, and the reservations of all processes that charge them."""

    def __init__(self, vector: dict[str, Any]) -> None:
        self.start_us = instant_us(vector["start_at"])
        self.now = self.start_us
        self.prices = parse_prices(json.dumps(vector["prices"]))
        self.policy = vector.get("policy", {})
        self.metering = Metering(**{name: self.policy[name] for name in RESERVATION_POLICY if name in self.policy})
        self.limits = [self._limit(spec) for spec in vector["limits"]]
        self.names = [limit.name for limit in self.limits]
        self.used = dict.fromkeys(self.names, 0)
        self.open: dict[str, MeteredReservation] = {}
        self.caps: dict[str, int | None] = {}
        self.denials: dict[str, dict[str, Any]] = {}

    def _limit(self, spec: dict[str, Any]) -> Limit:
        keywords = {"quota": MAX_NUMBER, **spec}
        metered = spec["unit"] in ("input_tokens", "output_tokens", "tokens", "micros")
        if metered and "unmetered" in self.policy:
            keywords["unmetered"] = self.policy["unmetered"]
        window = {"window_seconds": 60} if spec.get("algorithm") == "concurrency" else WINDOW
        return Limit(**{**window, **keywords})

    def play(self, steps: list[dict[str, Any]]) -> None:
        for number, step in enumerate(steps):
            self.now = self.start_us + step["at_ms"] * 1_000
            for reservation in self.open.values():
                self._change(reservation, lambda r: r.passed(self.now))
            getattr(self, f"do_{step['op']}")(step)
            for name, expected in step.get("expect", {}).items():
                self._compare(f"step {number}, {name}", name, expected, step.get("ref"))

    # The steps.

    def do_reserve(self, step: dict[str, Any]) -> None:
        request, ref = step["request"], step["ref"]
        self.open.pop(ref, None)
        terms = (
            unmetered_terms(self.limits)
            if "unmetered" in request
            else terms_of(self.limits, self.prices, request["model"], self.now)
        )
        if isinstance(terms, ReservationDenial):
            self._deny(ref, terms.reason, [self.names[i] for i in terms.denied_by])
            return
        estimate = None
        if terms.metered:
            sizes = {name: request[name] for name in ("text_bytes", "parts", "cap", "n") if name in request}
            estimate = estimate_request(self.metering, factor=self.policy.get("factor", 1000), **sizes)
        reservation = MeteredReservation(terms, estimate, self.now)
        reason, denied_by = self._fits(reservation)
        floor = self.metering.clamp_at_least
        if denied_by and floor is not None and estimate is not None:
            room = [limit.quota - self.used[limit.name] for limit in self.limits]
            lower = clamp(estimate, terms, room, floor)
            if lower is not None:
                reservation, denied_by = MeteredReservation(terms, lower, self.now), []
        if denied_by:
            self._deny(ref, reason, denied_by)
            return
        self.denials.pop(ref, None)
        self.open[ref] = reservation
        for name, cost in self._charges(reservation).items():
            self.used[name] += cost

    def _fits(self, reservation: MeteredReservation) -> tuple[str, list[str]]:
        costs = zip(self.limits, reservation.costs, strict=True)
        denying = [(limit, cost) for limit, cost in costs if cost and self.used[limit.name] + cost > limit.quota]
        hopeless = any(cost > limit.quota for limit, cost in denying)
        return ("cost_exceeds_capacity" if hopeless else "limited"), [limit.name for limit, _ in denying]

    def _deny(self, ref: str, reason: str, denied_by: list[str]) -> None:
        self.denials[ref] = {"reason": reason, "denied_by": denied_by}

    def do_answer(self, step: dict[str, Any]) -> None:
        self._event(step, lambda r: r.answered(step["status"], self.now))

    def do_streamed(self, step: dict[str, Any]) -> None:
        self._event(step, lambda r: r.streamed(step["text_bytes"], step["bytes"], self.now))

    def do_usage(self, step: dict[str, Any]) -> None:
        usage = Usage(**step["usage"])
        self._event(step, lambda r: r.reported(usage, self.now, final=step.get("final", False)))

    def do_ends(self, step: dict[str, Any]) -> None:
        if not step.get("readable", True) and step["ref"] in self.open:
            self.open[step["ref"]].unreadable()
        self._event(step, lambda r: r.ended(self.now))

    do_breaks = do_ends

    def do_refused(self, step: dict[str, Any]) -> None:
        self._event(step, lambda r: r.refused(step.get("status"), self.now))

    def do_client_leaves(self, step: dict[str, Any]) -> None:
        bounds = DrainBounds(**self.policy["drain"]) if "drain" in self.policy else None
        if bounds and sum(other.draining for other in self.open.values()) >= bounds.at_once:
            bounds = None
        self._event(step, lambda r: r.client_left(self.now, sent=step.get("sent", True), drain=bounds))

    def do_dies(self, step: dict[str, Any]) -> None:
        self.open[step["ref"]].died()

    def do_expires(self, step: dict[str, Any]) -> None:
        self._event(step, lambda r: r.expired(self.now))

    def do_by_hand(self, step: dict[str, Any]) -> None:
        self._event(step, lambda r: r.settled_by_hand(usage_of(step.get("usage")), self.now))

    def do_look(self, step: dict[str, Any]) -> None:
        pass

    def _event(self, step: dict[str, Any], event: Any) -> None:
        if step["ref"] in self.open:
            self._change(self.open[step["ref"]], event)

    def _change(self, reservation: MeteredReservation, event: Any) -> None:
        """Charge the counters of one reservation for what an event changes, as the store would."""
        before, state = self._charges(reservation), reservation.state
        settlement = event(reservation)
        assert settlement is None or (isinstance(settlement, Settlement) and state != "settled"), "settled twice"
        for name, cost in self._charges(reservation).items():
            self.used[name] += cost - before[name]

    def _charges(self, reservation: MeteredReservation) -> dict[str, int]:
        found = {}
        for limit, cost in zip(self.limits, reservation.costs, strict=True):
            if cost is not None:
                slot = limit.algorithm == "concurrency"
                found[limit.name] = 0 if slot and not reservation.holds_slots else cost
        return found

    # What is expected.

    def _compare(self, place: str, name: str, expected: Any, ref: str | None) -> None:
        if name == "used":
            found = {limit: self.used[limit] for limit in expected}
        elif name in ("charges", "debt", "given_back"):
            found, expected = self._nonzero(self._by_name(name, ref)), self._nonzero(expected)
        else:
            found = self._fact(name, ref)
        assert found == expected, f"{place}: {found}, not {expected}"

    def _by_name(self, name: str, ref: str | None) -> dict[str, int]:
        if ref in self.denials or ref not in self.open:
            return {}
        reservation = self.open[ref]
        if name == "charges":
            return self._charges(reservation)
        amounts = zip(self.limits, getattr(reservation, name)(), strict=True)
        return {limit.name: cost for limit, cost in amounts if cost and limit.algorithm != "concurrency"}

    def _fact(self, name: str, ref: str | None) -> Any:
        denial = self.denials.get(ref)
        if name == "allowed":
            return denial is None
        if name in ("reason", "denied_by"):
            return (denial or {"reason": "ok", "denied_by": []})[name]
        reservation = self.open[ref]
        if name == "cap":
            return reservation.estimate.cap
        if name == "unmetered":
            return [self.names[i] for i in reservation.terms.unmetered()]
        return getattr(reservation, name)

    @staticmethod
    def _nonzero(amounts: dict[str, int]) -> dict[str, int]:
        return {name: amount for name, amount in amounts.items() if amount}
