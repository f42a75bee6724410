"""The settings. A value that differs between installations comes from the environment, and the rest are constants."""

from datetime import timedelta

from redis.backoff import NoBackoff
from redis.retry import Retry

from controlplane.core import environment as env
from controlplane.core import logs

# What is imported as itself is a setting, too.
from controlplane.core.paths import BASE_DIR as BASE_DIR
from controlplane.core.paths import TEMPLATES_DIR as TEMPLATES_DIR
from controlplane.core.paths import VAR_DIR as VAR_DIR
from controlplane.core.paths import kept, make_var_dir
from controlplane.schedule import SCHEDULE
from controlplane.web.kit.theme import UNFOLD as UNFOLD
from enforcement.model.keys import DEFAULT_PREFIX
from enforcement.store.topology import redis_url

# Set by each installation ---------------------------------------------------------------------------------------------

DEBUG = env.flag("DEBUG")
ALLOW_DEBUG = env.flag("SLUICEGATE_ALLOW_DEBUG")
# There is no default, because a secret in published code is not secret. checks.py shows how to create one.
SECRET_KEY = env.string("SECRET_KEY") or kept("secret_key")
# Former ones, which are read and no longer written with.
SECRET_KEY_FALLBACKS = env.items("SECRET_KEY_FALLBACKS")
ALLOWED_HOSTS = env.items("ALLOWED_HOSTS", ["localhost", "127.0.0.1", "[::1]"])
CSRF_TRUSTED_ORIGINS = env.items("CSRF_TRUSTED_ORIGINS")
# True if clients connect over TLS, also if a proxy terminates TLS and sends X-Forwarded-Proto.
HTTPS = env.flag("SLUICEGATE_HTTPS")
# The networks of proxies whose X-Forwarded-For is trusted. The enforcing proxies read the same variable.
TRUSTED_PROXIES = env.items("SLUICEGATE_TRUSTED_PROXIES")
# The networks that may read /metrics, by default this machine and private networks.
METRICS_NETWORKS = env.items(
    "SLUICEGATE_METRICS_NETWORKS",
    ["127.0.0.0/8", "::1", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"],
)

# Celery and the cache do not know valkey://.
REDIS_URL = redis_url(
    env.string("SLUICEGATE_REDIS_URL") or env.string("REDIS_URL") or kept("redis_url") or "redis://127.0.0.1:6379/0"
)
# Celery and the cache need a single server. If the store is a cluster, they need a server of their own.
BROKER_URL = redis_url(env.string("SLUICEGATE_BROKER_URL")) or REDIS_URL
STORE_PREFIX = env.string("SLUICEGATE_PREFIX", DEFAULT_PREFIX)
# All money of this installation is counted in this currency. Changing it converts nothing.
CURRENCY = env.currency("SLUICEGATE_CURRENCY", "USD")
# The hosts of upstreams that report the cost of a request in this currency, which is then charged.
REPORTED_COSTS = env.hosts("SLUICEGATE_REPORTED_COSTS")
ENVIRONMENT_NAME = env.string("SLUICEGATE_ENVIRONMENT")
# The address at which clients reach the proxies, for the examples in the admin.
PROXY_URL = env.http_url("SLUICEGATE_PROXY_URL")
# Networks that messages about alerts are sent to, besides public addresses.
ALERT_NETWORKS = env.networks("SLUICEGATE_ALERT_NETWORKS")
# Chats and pagers, by their names in apprise. Each of these has a fixed host.
ALERT_SERVICES = env.items(
    "SLUICEGATE_ALERT_SERVICES",
    [
        "discord",
        "gchat",
        "opsgenie",
        "pagerduty",
        "pagertree",
        "pover",
        "signl4",
        "slack",
        "splunk",
        "tgram",
        "wxteams",
    ],
)
globals().update(env.mail("SLUICEGATE_EMAIL_URL"))
DEFAULT_FROM_EMAIL = env.string("SLUICEGATE_EMAIL_FROM", "sluicegate@localhost")

# Applications ---------------------------------------------------------------------------------------------------------

INSTALLED_APPS = [
    "unfold",  # before the admin, whose templates it replaces
    "unfold.contrib.filters",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "django.contrib.humanize",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "django_filters",
    "axes",
    "django_otp.plugins.otp_totp",
    "django_otp.plugins.otp_static",
    "controlplane.objects.projects",
    "controlplane.objects.keys",
    "controlplane.web.restkit.idempotency",
    "controlplane.objects.people",
    "controlplane.objects.policies",
    "controlplane.objects.overrides",
    "controlplane.releases.drafts",
    "controlplane.operations.jobs",
    "controlplane.operations.webhooks",
    "controlplane.operations.alerts",
    "controlplane.objects.prices",
    "controlplane.objects.emergency",
    "controlplane.releases.publishing",
    "controlplane.releases.revisions",
    "controlplane.changes.change",
    "controlplane.changes.audit",
    "controlplane.traffic.fleet",
    "controlplane.traffic.usage",
    "controlplane.traffic.reports",
    "controlplane.traffic.callers",
    "controlplane.traffic.reservations",
    "controlplane.stack",
    "controlplane.demo",
    "controlplane.web.pages",  # last, because it imports pages about the models of all others
]

MIDDLEWARE = [
    "controlplane.core.requests.RequestLog",  # first, so that every log line has the id of its request
    "controlplane.web.restkit.transport.HttpsOnly",  # before the redirect of the next one
    "django.middleware.security.SecurityMiddleware",
    "controlplane.web.restkit.transport.LengthRequired",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "controlplane.core.csp.ContentSecurityPolicy",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "controlplane.core.requests.CommonForHosts",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django_otp.middleware.OTPMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "controlplane.web.login.signed_out.SignedOut",
    "controlplane.web.kit.times.UserZone",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "controlplane.core.requests.NoNullCharacters",
    "controlplane.web.site.error_pages.UnreadSources",
    "controlplane.web.login.second_factor_gate.SecondFactorGate",
    "controlplane.web.login.known_browsers.KnownBrowsers",
    "axes.middleware.AxesMiddleware",  # last, because it replaces the response to a refused log-in
]

ROOT_URLCONF = "controlplane.urls"
WSGI_APPLICATION = "controlplane.wsgi.application"
ASGI_APPLICATION = "controlplane.asgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [TEMPLATES_DIR],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "controlplane.web.pages.emergency.banner.banner",
            ],
            "libraries": {"times": "controlplane.web.kit.times", "menu": "controlplane.web.kit.menu"},
        },
    },
]

LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_TZ = True
USE_I18N = False
FORMAT_MODULE_PATH = "controlplane.core.formats"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

STATIC_URL = "static/"
STATICFILES_DIRS = [BASE_DIR / "controlplane" / "static"]
# Files are served from the installed packages, so there is no STATIC_ROOT and collectstatic is not needed.
WHITENOISE_USE_FINDERS = True

# The database ---------------------------------------------------------------------------------------------------------

_sqlite: dict[str, object] = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(VAR_DIR / "controlplane.sqlite3")}
DATABASES = {"default": env.database("DATABASE_URL") or _sqlite}
if DATABASES["default"] is _sqlite:
    make_var_dir()
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    DATABASES["default"]["OPTIONS"] = {
        # A transaction takes the write lock at its start, because after a read it could not get it.
        "transaction_mode": "IMMEDIATE",
        # A request that waits for the write lock keeps one of a few threads. Twenty writers wait at most 1.5 seconds.
        "timeout": 3,
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA busy_timeout=3000;",
    }
else:
    DATABASES["default"]["CONN_MAX_AGE"] = 60
    DATABASES["default"]["CONN_HEALTH_CHECKS"] = True

# The store ------------------------------------------------------------------------------------------------------------

# The longest time that a request waits for one reply of the store. After that, Celery publishes the change.
PUBLISH_TIMEOUT_SECONDS = 0.25

# How many tasks drain usage at the same time. SQLite has one writer, and each further one would only wait for it.
DRAINS = env.integer("SLUICEGATE_DRAINS", 2, most=16)
if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    DRAINS = 1

CACHES = {
    "default": {
        "BACKEND": "django_redis.cache.RedisCache",
        "LOCATION": BROKER_URL,
        "KEY_PREFIX": f"{STORE_PREFIX}cache",
        "OPTIONS": {
            # An unavailable cache counts as a miss after a short time. Retries of the client would take seconds.
            "IGNORE_EXCEPTIONS": True,
            "SOCKET_CONNECT_TIMEOUT": 0.1,
            "SOCKET_TIMEOUT": 0.1,
            "CONNECTION_POOL_KWARGS": {"retry": Retry(NoBackoff(), 0)},
        },
    },
}
DJANGO_REDIS_LOG_IGNORED_EXCEPTIONS = True

# Celery ---------------------------------------------------------------------------------------------------------------

CELERY_BROKER_URL = BROKER_URL
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None  # retry however long the store is unavailable
CELERY_BROKER_CONNECTION_TIMEOUT = 2
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "global_keyprefix": f"{STORE_PREFIX}celery:",
    # Longer than any task may run. Otherwise a second worker would start it too.
    "visibility_timeout": 300,
    "socket_connect_timeout": 2,
    # Longer than the worker's blocking read of one second, and short enough to detect a store that hangs.
    "socket_timeout": 5,
    "socket_keepalive": True,
    "max_retries": 3,
    "interval_start": 0,
    "interval_max": 1,
}
CELERY_WORKER_CONSUMER = "controlplane.worker:Consumer"
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_SOFT_TIME_LIMIT = 50
CELERY_TASK_TIME_LIMIT = 60
# Another worker repeats the task of a worker that dies. Every task may run twice.
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS = True
CELERY_TIMEZONE = "UTC"
CELERY_BEAT_MAX_LOOP_INTERVAL = 1
CELERY_BEAT_SCHEDULE_FILENAME = str(VAR_DIR / "celerybeat-schedule")
CELERY_BEAT_SCHEDULE = SCHEDULE

# Authentication -------------------------------------------------------------------------------------------------------

AUTHENTICATION_BACKENDS = [
    "axes.backends.AxesStandaloneBackend",  # first, so that a locked-out user is refused before the password check
    "controlplane.access.backend.RoleBackend",
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
]
LOGIN_URL = "/admin/login/"
LOGIN_REDIRECT_URL = "/admin/"

# Failed log-ins are counted in SQL, so the lock-out does not depend on the store.
AXES_HANDLER = "controlplane.web.login.lockout.LockoutHandler"
AXES_CLIENT_IP_CALLABLE = "controlplane.web.login.lockout.address_of"
AXES_LOCKOUT_CALLABLE = "controlplane.web.login.lockout.locked_out"
AXES_FAILURE_LIMIT = 5
# With many names, one address may try more often than with one name, because an office has one address.
ADDRESS_FAILURE_LIMIT = 20
AXES_COOLOFF_TIME = timedelta(minutes=15)
AXES_LOCKOUT_PARAMETERS = [["username", "ip_address"]]
# A locked-out client that goes on trying is let in at the time that it was told.
AXES_RESET_COOL_OFF_ON_FAILURE_DURING_LOCKOUT = False
AXES_RESET_ON_SUCCESS = True
AXES_VERBOSE = False

REQUIRE_SECOND_FACTOR = env.flag("SLUICEGATE_REQUIRE_SECOND_FACTOR")  # whoever has an authenticator is always asked
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_SECURE = HTTPS
SESSION_COOKIE_AGE = 12 * 3600
CSRF_COOKIE_SAMESITE = "Lax"
CSRF_COOKIE_SECURE = HTTPS
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
SECURE_CROSS_ORIGIN_OPENER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
CSRF_FAILURE_VIEW = "controlplane.web.site.error_pages.csrf_failure"
if HTTPS:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    SECURE_SSL_REDIRECT = True
    SECURE_REDIRECT_EXEMPT = [r"^healthz$", r"^readyz$", r"^metrics$"]  # requested inside the network, without TLS
    SECURE_HSTS_SECONDS = 365 * 24 * 3600
DATA_UPLOAD_MAX_MEMORY_SIZE = 1024 * 1024

# REST -----------------------------------------------------------------------------------------------------------------

# How many requests one management key, the token of one consumer, and one address without either of them may send.
REST_RATE = env.rate("SLUICEGATE_REST_RATE", "1200/minute")
REST_CONSUMER_RATE = env.rate("SLUICEGATE_REST_CONSUMER_RATE", "60/minute")
REST_FAILURE_RATE = env.rate("SLUICEGATE_REST_FAILURE_RATE", "60/minute")

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["controlplane.web.restkit.authentication.ManagementKeyAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["controlplane.web.restkit.authentication.HasScope"],
    "DEFAULT_PARSER_CLASSES": ["controlplane.web.restkit.parsers.StrictJSONParser"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "controlplane.web.restkit.parsers.Negotiation",
    "DEFAULT_SCHEMA_CLASS": "controlplane.web.restkit.schema.AutoSchema",
    "EXCEPTION_HANDLER": "controlplane.web.restkit.problems.handle",
    "URL_FORMAT_OVERRIDE": None,
}

SPECTACULAR_SETTINGS = {
    "TITLE": "Sluicegate",
    "VERSION": "1",
    "OAS_VERSION": "3.1.1",
    "SERVE_INCLUDE_SCHEMA": False,
    "SCHEMA_PATH_PREFIX": "/api/v1",
    "LICENSE": {"name": "Apache License 2.0", "identifier": "Apache-2.0"},
    # The server that sent the document.
    "SERVERS": [{"url": "/"}],
    # Names of sets of values that would have a checksum in theirs.
    "ENUM_NAME_OVERRIDES": {
        "WebhookKindEnum": "controlplane.web.rest.webhooks.KINDS",
        "PeriodEnum": "controlplane.core.periods.PERIODS",
    },
    # Requests and responses differ in read-only fields and in the secret of a token.
    "COMPONENT_SPLIT_REQUEST": True,
    # The docs page sends no request to another host.
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "REDOC_DIST": "SIDECAR",
}

# Logs -----------------------------------------------------------------------------------------------------------------

LOGGING = logs.LOGGING
logs.configure_structlog()
