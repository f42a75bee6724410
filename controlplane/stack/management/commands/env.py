import shlex
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from controlplane.stack.embedded import management_command, remembered


class Command(BaseCommand):
    help = "Print the environment of programs that use the store of this stack, as lines for a shell."
    requires_system_checks = []

    def handle(self, *args: Any, **options: Any) -> None:
        path = remembered(settings.VAR_DIR)
        try:
            url = path.read_text().strip()
        except FileNotFoundError as exc:
            raise CommandError(f"{path} is missing. Start the stack first: {management_command()} up") from exc
        self.stdout.write(f"export SLUICEGATE_REDIS_URL={shlex.quote(url)}")
