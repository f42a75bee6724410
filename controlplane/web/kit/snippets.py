"""Examples of how to send a request with a token, and how to put limits into an application or a proxy."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from django.conf import settings

# Shown while this installation does not know where its proxies are.
UNKNOWN_PROXY = "https://your-proxy.example"
UNKNOWN_SECRET = "sg_live_..."

Snippet = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Sample:
    """
    A request to send for a first decision.

    Attributes:
        body: JSON, or an empty string for none.
        costs: What it costs by unit, for code without a proxy that reads that from the body.
    """

    method: str
    path: str
    body: str = ""
    costs: Mapping[str, int] = field(default_factory=dict)


HELLO = Sample("GET", "/v1/hello")


def proxy_url() -> str:
    """Return the address of the proxies without a slash at the end, which is a placeholder if it is not known."""
    return (settings.PROXY_URL or UNKNOWN_PROXY).rstrip("/")


def token_snippets(secret: str = UNKNOWN_SECRET, sample: Sample = HELLO) -> list[Snippet]:
    """
    Return examples with the address of this installation, each with its id, title and code.

    Args:
        secret: That of the token, or a placeholder.
        sample: The request that they send.
    """
    here = "http://127.0.0.1:8080"
    return [
        ("curl", "curl", _curl(proxy_url(), secret, sample)),
        ("python", "Python", _python(secret, sample)),
        ("fastapi", "FastAPI", _FASTAPI),
        ("nginx", "nginx", _NGINX + _curl(here, secret, sample)),
        ("envoy", "Envoy", _ENVOY + _curl(here, secret, sample, "--retry 20 --retry-connrefused --retry-delay 1 ")),
        ("openai", "OpenAI SDK", _OPENAI.format(url=proxy_url(), secret=secret)),
    ]


def _curl(url: str, secret: str, sample: Sample, options: str = "") -> str:
    verb = "" if sample.method == "GET" else f"-X {sample.method} "
    body = f" \\\n    -H 'Content-Type: application/json' \\\n    -d '{sample.body}'" if sample.body else ""
    return f'curl -i {options}{verb}{url}{sample.path} \\\n    -H "Authorization: Bearer {secret}"{body}'


def _python(secret: str, sample: Sample) -> str:
    request = {"method": sample.method, "path": sample.path}
    costs = f"costs={json.dumps(sample.costs)}, " if sample.costs else ""
    return _PYTHON.format(secret=secret, costs=costs, attributes=json.dumps(request))


# In a checkout, the store and the commands are those of `make up`.
_IN_A_CHECKOUT = """\
# SLUICEGATE_REDIS_URL names the store. In a checkout where `make up` runs:
# eval "$(make -s env)"; PATH="$PWD/.venv/bin:$PATH"
"""

_PYTHON = (
    _IN_A_CHECKOUT
    + """\
from enforcement import Limiter

with Limiter.from_env() as limiter:
    print(limiter.check("{secret}", {costs}attributes={attributes}))
"""
)

_FASTAPI = (
    _IN_A_CHECKOUT
    + """\
# The token comes from the field Authorization of each request.
from fastapi import FastAPI

from enforcement.doors.asgi import LimitMiddleware

app = FastAPI()
app.add_middleware(LimitMiddleware)
"""
)

_SERVICE = """\
# Replace the address of the application, 8000, in the file.
sluicegate serve --port 9000 --deadline 300 &
curl -fsS -o /dev/null --retry 20 --retry-connrefused --retry-delay 1 http://127.0.0.1:9000/readyz
"""

_NGINX = (
    "# nginx asks the decision service about each request.\n"
    + _IN_A_CHECKOUT
    + _SERVICE
    + 'nginx -p "$PWD" -c docker/proxies/nginx/nginx.conf\n'
)

_ENVOY = (
    "# Envoy asks the decision service about each request.\n"
    + _IN_A_CHECKOUT
    + _SERVICE
    + "envoy -c docker/proxies/envoy/ext-authz-grpc.yaml &\n"
)

_OPENAI = """\
# The proxy replaces the token by the credential of the provider.
from openai import OpenAI

client = OpenAI(base_url="{url}/v1", api_key="{secret}")
messages = [{{"role": "user", "content": "Hello"}}]
print(client.chat.completions.create(model="gpt-5-mini", max_completion_tokens=100, messages=messages))
"""
