from tests.controlplane.adminkit.conftest import ann, as_ann, told
from tests.controlplane.preview.conftest import sent

__all__ = ["ann", "as_ann", "sent", "told"]
