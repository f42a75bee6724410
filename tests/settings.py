"""The control plane's settings as they are, with a key of their own and no store."""

import os

os.environ.setdefault("SECRET_KEY", "only-for-tests-" + "0123456789abcdef" * 4)
# A port where nothing listens: a test that wants the store asks for it.
os.environ["SLUICEGATE_REDIS_URL"] = "redis://127.0.0.1:1/0"

from controlplane.settings import *  # noqa: F403  (the key must be there before the settings are read)
