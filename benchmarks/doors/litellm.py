"""LiteLLM's proxy, in an environment of its own, in front of the provider."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.doors.servers import Server, server
from benchmarks.world import MODEL
from enforcement.embedded import free_port

KEY = "sk-benchmarks"
START_SECONDS = 120.0
# No database, no callbacks, no retries: of its features it has only the master key. As its own command does, it runs on
# one process of uvicorn with uvloop.
_CONFIG = """
model_list:
  - model_name: {model}
    litellm_params: {{model: openai/{model}, api_base: "http://127.0.0.1:{provider}/v1", api_key: x, max_retries: 0}}
litellm_settings: {{num_retries: 0, telemetry: false}}
general_settings: {{master_key: {key}}}
"""
_PROGRAM = (
    "import uvicorn; uvicorn.run('litellm.proxy.proxy_server:app', "
    "host='127.0.0.1', port={port}, loop='uvloop', log_level='critical', access_log=False)"
)


@contextmanager
def litellm(python: str, *, provider: int, core: int | None = None) -> Iterator[Server]:
    """
    Run LiteLLM's proxy while the block runs.

    Args:
        python: The Python of its environment.
        provider: The port of the provider.
        core: The core that it is bound to. None: that of this process.
    """
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="sluicegate-bench-litellm-") as name:
        folder = Path(name)
        (folder / "config.yaml").write_text(_CONFIG.format(model=MODEL, provider=provider, key=KEY))
        environ = {
            "CONFIG_FILE_PATH": str(folder / "config.yaml"),
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOG": "ERROR",
            "PYTHONPATH": "",
        }
        command = [python, "-c", _PROGRAM.format(port=port)]
        with server(command, port, core=core, folder=folder, patience=START_SECONDS, **environ) as running:
            yield running


def version_of(python: str) -> str:
    """Return the version of LiteLLM in an environment."""
    program = "from importlib.metadata import version; print(version('litellm'))"
    return subprocess.run([python, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
