from tests.controlplane.preview.conftest import sent

__all__ = ["sent"]
