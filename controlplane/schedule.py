"""When Celery's beat starts each periodic task."""

from datetime import timedelta

from celery.schedules import crontab

# "expires" drops a task that no worker could start in time, so that an outage leaves no queue.
SCHEDULE = {
    "publish-pending": {
        "task": "controlplane.publishing.tasks.publish_pending",
        "schedule": timedelta(seconds=2),
        "options": {"expires": 2},
    },
    "reconcile": {
        "task": "controlplane.publishing.tasks.reconcile",
        "schedule": timedelta(seconds=5),
        "options": {"expires": 5},
    },
    "reconcile-fully": {
        "task": "controlplane.publishing.tasks.reconcile_fully",
        "schedule": timedelta(minutes=1),
        "options": {"expires": 60},
    },
    "end-overrides": {
        "task": "controlplane.publishing.tasks.end_overrides",
        "schedule": timedelta(minutes=1),
        "options": {"expires": 60},
    },
    "end-glass": {
        "task": "controlplane.emergency.tasks.end_glass",
        "schedule": timedelta(seconds=5),
        "options": {"expires": 5},
    },
    "end-suspensions": {
        "task": "controlplane.emergency.tasks.end_suspensions",
        "schedule": timedelta(seconds=5),
        "options": {"expires": 5},
    },
    "expire-tokens": {
        "task": "controlplane.projects.tasks.expire_tokens",
        "schedule": timedelta(minutes=1),
        "options": {"expires": 60},
    },
    "seal-audit": {
        "task": "controlplane.audit.tasks.seal",
        "schedule": timedelta(minutes=1),
        "options": {"expires": 60},
    },
    "run-jobs": {
        "task": "controlplane.jobs.tasks.run_jobs",
        "schedule": timedelta(seconds=2),
        "options": {"expires": 2},
    },
    "prune-jobs": {
        "task": "controlplane.jobs.tasks.prune_jobs",
        "schedule": timedelta(hours=1),
        "options": {"expires": 3600},
    },
    "prune-answers": {
        "task": "controlplane.idempotency.tasks.prune_answers",
        "schedule": timedelta(hours=1),
        "options": {"expires": 3600},
    },
    "prune-outbox": {
        "task": "controlplane.publishing.tasks.prune_outbox",
        "schedule": timedelta(hours=1),
        "options": {"expires": 3600},
    },
    "prune-documents": {
        "task": "controlplane.publishing.tasks.prune_documents",
        "schedule": timedelta(hours=1),
        "options": {"expires": 3600},
    },
    "collect-heartbeats": {
        "task": "controlplane.fleet.tasks.collect_heartbeats",
        "schedule": timedelta(seconds=2),
        "options": {"expires": 2},
    },
    "drain-usage": {
        "task": "controlplane.usage.tasks.drain",
        "schedule": timedelta(seconds=2),
        "options": {"expires": 2},
    },
    "checkpoint": {
        "task": "controlplane.usage.tasks.checkpoint",
        "schedule": timedelta(seconds=10),
        "options": {"expires": 10},
    },
    "fold-recorded-usage": {
        "task": "controlplane.preview.tasks.fold",
        "schedule": timedelta(minutes=5),
        "options": {"expires": 300},
    },
    "prune-usage": {
        "task": "controlplane.usage.tasks.prune",
        "schedule": timedelta(hours=1),
        "options": {"expires": 3600},
    },
    "record-lost-reservations": {
        "task": "controlplane.reservations.tasks.record_lost",
        "schedule": timedelta(seconds=30),
        "options": {"expires": 30},
    },
    "settle-overdue-reservations": {
        "task": "controlplane.reservations.tasks.settle_overdue",
        "schedule": timedelta(minutes=1),
        "options": {"expires": 60},
    },
    "prune-reservations": {
        "task": "controlplane.reservations.tasks.prune",
        "schedule": timedelta(hours=1),
        "options": {"expires": 3600},
    },
    "evaluate-alerts": {
        "task": "controlplane.alerts.tasks.evaluate",
        "schedule": timedelta(seconds=30),
        "options": {"expires": 30},
    },
    "prune-alerts": {
        "task": "controlplane.alerts.tasks.prune",
        "schedule": timedelta(hours=1),
        "options": {"expires": 3600},
    },
    "deliver-messages": {
        "task": "controlplane.webhooks.tasks.deliver",
        "schedule": timedelta(seconds=2),
        "options": {"expires": 2},
    },
    "prune-deliveries": {
        "task": "controlplane.webhooks.tasks.prune",
        "schedule": timedelta(hours=1),
        "options": {"expires": 3600},
    },
    # Every hour, although it looks at whole days, so that a missed run is made up soon.
    "learn-estimates": {
        "task": "controlplane.prices.tasks.learn_estimates",
        "schedule": crontab(minute=25),
        "options": {"expires": 3600},
    },
    "publish-last-week": {
        "task": "controlplane.prices.tasks.publish_week",
        "schedule": timedelta(minutes=10),
        "options": {"expires": 600},
    },
    # Every hour, although each day has one report, so that missed reports are written soon.
    "daily-reports": {
        "task": "controlplane.usage.tasks.daily_reports",
        "schedule": crontab(minute=10),
        "options": {"expires": 3600},
    },
}
