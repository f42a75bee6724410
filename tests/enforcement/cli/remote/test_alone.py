"""The commands about a control plane need none of its code, so that ``sluicegate[cli]`` is all that they need."""

import subprocess
import sys

ALONE = """
import sys

REFUSED = ("controlplane", "django", "rest_framework", "celery")

class Refusing:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] in REFUSED:
            raise ModuleNotFoundError(f"{name} is not installed", name=name)

sys.meta_path.insert(0, Refusing())
from enforcement.cli import main
from enforcement.cli.commands import REMOTE

statuses = {command.name: main([command.name, "--help"]) for command in REMOTE}
assert set(statuses.values()) == {0}, statuses
assert main(["validate", sys.argv[1]]) == 0
assert not {name.partition(".")[0] for name in sys.modules} & set(REFUSED)
print("ran", len(statuses))
"""
FILE = "apiVersion: sluicegate/v1\nproject: {slug: chat}\n"


def test_the_commands_run_where_nothing_of_the_control_plane_is(tmp_path):
    """As after `pip install 'sluicegate[cli]'`."""
    (tmp_path / "chat.yaml").write_text(FILE)
    command = [sys.executable, "-c", ALONE, str(tmp_path / "chat.yaml")]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1].startswith("ran ")
