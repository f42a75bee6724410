"""The control plane's settings as they are, with a key of their own, no store, and a database in a file."""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("SECRET_KEY", "only-for-tests-" + "0123456789abcdef" * 4)
# Playwright's event loop runs in the thread of the tests until the last of them has run; Django would take every test
# that follows a browser's for a coroutine, and refuse it the database.
os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"
# A port where nothing listens: a test that wants the store asks for it.
os.environ["SLUICEGATE_REDIS_URL"] = "redis://127.0.0.1:1/0"
# So that no test needs the store for its requests; tests of the limits of REST set these themselves.
os.environ |= {f"SLUICEGATE_REST_{name}RATE": "off" for name in ("", "CONSUMER_", "FAILURE_")}

from controlplane.settings import *  # noqa: F403  (the key must be there before the settings are read)
from controlplane.settings import DATABASES

if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    # Not in memory: threads and other processes of a test see the same rows.
    name = Path(tempfile.gettempdir()) / f"sluicegate-test-{os.getpid()}.sqlite3"
    DATABASES["default"]["TEST"] = {"NAME": str(name)}

# Every test client builds the middleware anew. Production looks for the static files once; here that would take 50 ms
# a request. Tests that run the whole platform use the settings of production.
WHITENOISE_AUTOREFRESH = True
# The usual hash takes a third of a second by design, and a test of a page needs only to log in.
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
