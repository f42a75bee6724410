"""``sluicegate proof metering``: two ledgers, which say the same of every request."""

import pytest

from enforcement.proof.command import main
from tests.scale import scale

REQUESTS, KILLS = scale(250, 20_000), scale(2, 60)


@pytest.mark.proof
def test_the_invoice_is_what_was_settled_and_counted(capsys):
    """
    Whatever a provider and its clients do, and whichever process is killed, no request passes uncharged, and every one
    that was reported is charged to the token.
    """
    status = main(["metering", "--requests", str(REQUESTS), "--kills", str(KILLS)])
    printed = capsys.readouterr().out

    assert status == 0, printed
    assert printed.startswith("seed ")
    assert "BROKEN" not in printed
