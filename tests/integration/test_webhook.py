"""A webhook is posted to real web servers, good and bad ones."""

from __future__ import annotations

import socket
import ssl
import time
from pathlib import Path

import pytest
import trustme

from campaigns.webhook import NO_ANSWER, post_webhook, shown_webhook
from tests.webhook_server import SECRET_PATH, WebhookServer

SECRET = "zyxwv"


def test_what_is_posted_arrives() -> None:
    with WebhookServer() as hook:
        assert post_webhook(hook.url, {"events": [{"id": 1}]}) == ""
        assert hook.received == [{"events": [{"id": 1}], "path": SECRET_PATH}]


@pytest.mark.parametrize("status", [201, 204])
def test_any_2yz_is_a_success(status: int) -> None:
    with WebhookServer() as hook:
        hook.status = status
        assert post_webhook(hook.url, {}) == ""


@pytest.mark.parametrize("status", [304, 400, 404, 410, 429, 500, 503])
def test_any_other_answer_is_a_failure_that_keeps_the_secret(status: int) -> None:
    with WebhookServer() as hook:
        hook.status = status
        error = post_webhook(hook.url, {})
        assert error.startswith(f"it answered {status}")
        assert SECRET not in error


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status: int) -> None:
    with WebhookServer() as elsewhere, WebhookServer() as hook:
        hook.status, hook.headers = status, {"Location": elsewhere.url}
        assert post_webhook(hook.url, {"events": []}).startswith(f"it answered {status}")
        assert elsewhere.received == []


def test_an_answer_that_does_not_come_is_not_awaited_for_ever() -> None:
    with WebhookServer() as hook:
        hook.silent.set()
        began = time.monotonic()
        assert post_webhook(hook.url, {}, timeout_seconds=0.2) == NO_ANSWER
        assert time.monotonic() - began < 5


def test_a_server_that_is_not_there_is_told() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        assert post_webhook(f"http://127.0.0.1:{port}/{SECRET}", {}) == "Connection refused"


def test_what_is_no_web_server_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as there:
        there.listen()
        url = f"http://127.0.0.1:{there.getsockname()[1]}/{SECRET}"
        error = post_webhook(url, {}, timeout_seconds=0.2)
        assert error and SECRET not in error


@pytest.mark.parametrize(
    "address", [f"http://127.0.0.1:1/{SECRET}\x00", f"http://{SECRET}@host:x/", "http://ä"]
)
def test_an_address_that_cannot_be_used_is_not_quoted(address: str) -> None:
    error = post_webhook(address, {}, timeout_seconds=0.2)
    assert error and SECRET not in error


def test_a_certificate_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with WebhookServer(context=context) as hook:
        error = post_webhook(hook.url, {"events": []})
        assert "certificate verify failed" in error and hook.received == []
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        assert post_webhook(hook.url, {"events": []}) == ""


def test_only_the_host_is_shown() -> None:
    assert shown_webhook(f"https://hooks.example.com:8443/{SECRET}?x={SECRET}") == (
        "https://hooks.example.com:8443/..."
    )
