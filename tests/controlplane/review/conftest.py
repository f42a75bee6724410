from tests.controlplane.adminkit.conftest import ann, as_ann, browser_type_launch_args, told, walker
from tests.controlplane.preview.conftest import sent

__all__ = ["ann", "as_ann", "browser_type_launch_args", "sent", "told", "walker"]
