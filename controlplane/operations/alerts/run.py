"""Look at what the rules watch, and decide on events."""

import logging
from datetime import datetime
from threading import Event, Thread

from billiard.exceptions import SoftTimeLimitExceeded
from django.db import DatabaseError, InterfaceError, OperationalError, connection
from django.utils import timezone

from controlplane.operations.alerts import events
from controlplane.operations.alerts import rules as watching
from controlplane.operations.alerts.models import RAISED, AlertEvent, AlertRule
from controlplane.operations.alerts.rule_kinds import LOST, OUTAGE
from controlplane.operations.alerts.snapshot import Look
from controlplane.operations.webhooks import deliveries

logger = logging.getLogger(__name__)

WATCH_SECONDS = 5.0


def evaluate(now: datetime) -> int:
    """Look once for all active rules, and return the number of new events."""
    rules = list(AlertRule.objects.filter(active=True).select_related("project"))
    if not rules:
        return 0  # the usual case costs one query, and no command
    look = Look(now, rules)
    look.begin()
    # Outages first, because a slow look at counters must not delay them.
    rules.sort(key=lambda rule: rule.kind != OUTAGE)
    return sum(_evaluate(rule, look) for rule in rules)


def _evaluate(rule: AlertRule, look: Look) -> int:
    """Return the number of new events of a rule. An error of this program in one rule leaves the others evaluated."""
    try:
        return len(events.decide(rule, watching.find(look, rule), look.now))
    except (OperationalError, InterfaceError, SoftTimeLimitExceeded):
        raise  # which no other rule is spared
    except Exception:
        logger.exception("The rule %s could not be evaluated", rule.pk)
        return 0


def evaluate_outage(now: datetime) -> int:
    """
    Evaluate the rules about outages alone, and send what is due while the store is away. Return the number of events.

    Celery needs a broker, which usually is the store, so during an outage no task runs.
    """
    rules = list(AlertRule.objects.filter(active=True, kind__in=(OUTAGE, LOST)).select_related("project"))
    if not rules:
        return 0
    look = Look(now, rules)
    look.begin()  # it also keeps since when the store is there, which the rules about lost instances need
    outages = [rule for rule in rules if rule.kind == OUTAGE]
    is_open = AlertEvent.objects.filter(rule__in=outages, state=RAISED, resolved_at=None).exists()
    if not (look.away or is_open):
        return 0
    count = sum(_evaluate(rule, look) for rule in outages)
    deliveries.run(WATCH_SECONDS)
    return count


def keep_watching(stop: Event, seconds: float = WATCH_SECONDS) -> None:
    """Evaluate outages again and again until *stop* is set. It runs in a thread of beat, which needs no broker."""
    while not stop.wait(seconds):
        try:
            evaluate_outage(timezone.now())
        except DatabaseError as exc:
            logger.warning("Outages could not be evaluated: %s", exc)
        except Exception:
            # An error of this program. The thread goes on, because the next outage may be one that it can tell of.
            logger.exception("Outages could not be evaluated")
        finally:
            connection.close()


def start_watching() -> Event:
    """Start the thread of :func:`keep_watching`, and return the event that ends it."""
    stop = Event()
    Thread(target=keep_watching, args=[stop], name="outages", daemon=True).start()
    return stop
