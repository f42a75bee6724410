from tests.controlplane.traffic.callers.conftest import sent

__all__ = ["sent"]
