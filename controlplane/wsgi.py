import os

from django.core.wsgi import get_wsgi_application

from controlplane.core.connections import close_after_refused_body

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "controlplane.settings")

application = close_after_refused_body(get_wsgi_application())

# A WSGI server runs no system checks by itself.
from controlplane.checks import refuse_unsafe_settings  # noqa: E402  (needs the settings)

refuse_unsafe_settings()
