import pytest


@pytest.mark.django_db
def test_only_the_admin_may_evaluate(client):
    """The theme cannot do without; everything else can."""
    admin = client.get("/admin/login/").headers["Content-Security-Policy"]
    other = client.get("/healthz").headers["Content-Security-Policy"]

    assert "script-src 'self' 'unsafe-eval';" in admin
    assert "script-src 'self';" in other
    assert "unsafe" not in other


@pytest.mark.django_db
def test_no_page_runs_scripts_of_others(client):
    """Neither from another host nor from within the page."""
    policy = client.get("/admin/login/").headers["Content-Security-Policy"]

    assert "default-src 'none'" in policy
    assert "http" not in policy
    assert "script-src 'self' 'unsafe-eval';" in policy
