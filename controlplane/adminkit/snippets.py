"""Examples of how to send a request with a token, and how to put limits into an application or a proxy."""

from django.conf import settings

# Shown while this installation does not know where its proxies are.
UNKNOWN_PROXY = "https://your-proxy.example"
UNKNOWN_SECRET = "sg_live_..."

Snippet = tuple[str, str, str]


def proxy_url() -> str:
    """Return the address of the proxies without a slash at the end, which is a placeholder if it is not known."""
    return (settings.PROXY_URL or UNKNOWN_PROXY).rstrip("/")


def token_snippets(secret: str = UNKNOWN_SECRET, method: str = "GET", path: str = "/v1/hello") -> list[Snippet]:
    """
    Return examples with the address of this installation, each with its id, title and code.

    Args:
        secret: That of the token, or a placeholder.
    """
    return [
        ("curl", "curl", _curl(proxy_url(), secret, method, path)),
        ("python", "Python", _PYTHON.format(secret=secret, method=method, path=path)),
        ("fastapi", "FastAPI", _FASTAPI),
        ("nginx", "nginx", _NGINX + _curl("http://127.0.0.1:8080", secret, method, path)),
        ("envoy", "Envoy", _ENVOY + _curl("http://127.0.0.1:8080", secret, method, path)),
        ("openai", "OpenAI SDK", _OPENAI.format(url=proxy_url(), secret=secret)),
    ]


def _curl(url: str, secret: str, method: str, path: str) -> str:
    verb = "" if method == "GET" else f"-X {method} "
    return f'curl -i {verb}{url}{path} \\\n    -H "Authorization: Bearer {secret}"'


_PYTHON = """\
# SLUICEGATE_REDIS_URL names the store. For the one of `make up`: eval "$(make -s env)"
from enforcement import Limiter

with Limiter.from_env() as limiter:
    print(limiter.check("{secret}", attributes={{"method": "{method}", "path": "{path}"}}))
"""

_FASTAPI = """\
# The token comes from the field Authorization of each request. SLUICEGATE_REDIS_URL names the store.
from fastapi import FastAPI

from enforcement.doors.asgi import LimitMiddleware

app = FastAPI()
app.add_middleware(LimitMiddleware)
"""

_NGINX = """\
# The decision service, and nginx, which asks it about each request. Replace the addresses in the file.
sluicegate serve --port 9000 --deadline 300 &
nginx -p "$PWD" -c docker/proxies/nginx/nginx.conf &
"""

_ENVOY = """\
# The decision service, and Envoy, which asks it about each request. Replace the addresses in the file.
sluicegate serve --port 9000 --deadline 300 &
envoy -c docker/proxies/envoy/ext-authz-grpc.yaml &
"""

_OPENAI = """\
# The proxy replaces the token by the credential of the provider.
from openai import OpenAI

client = OpenAI(base_url="{url}/v1", api_key="{secret}")
print(client.chat.completions.create(model="gpt-5-mini", messages=[{{"role": "user", "content": "Hello"}}]))
"""
