"""Posting JSON to an address that may hold a secret: it is in no error and in no log."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

from campaigns.reply import redact

__all__ = ["NO_ANSWER", "WEBHOOK_SECONDS", "post_webhook", "shown_webhook"]

WEBHOOK_SECONDS = 10.0
NO_ANSWER = "no answer in time"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Whoever answers for the address configured, nobody else is told."""

    def redirect_request(self, *_args: Any, **_named: Any) -> None:
        return None


def post_webhook(url: str, content: Mapping[str, Any], *, timeout_seconds: float = WEBHOOK_SECONDS) -> str:
    """Post it once; why it did not get through, or "" if it did: any 2yz, after no redirect.

    Certificates are verified; a proxy of the environment is used.
    """
    request = urllib.request.Request(  # noqa: S310 - the settings allow http and https alone
        url,
        data=json.dumps(content).encode(),
        method="POST",
        headers={"Content-Type": "application/json", "User-Agent": f"campaigns/{version('campaigns')}"},
    )
    try:
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=timeout_seconds):
            return ""
    except urllib.error.HTTPError as error:
        with error:
            return redact(f"it answered {error.code} {error.reason}".strip())
    except urllib.error.URLError as error:
        return _cause(error.reason)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return _cause(error)


def shown_webhook(url: str) -> str:
    """The address without what may be secret in it."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}/..."


def _cause(error: BaseException | str) -> str:
    """Of an error of the system its text; others could quote the address."""
    if isinstance(error, TimeoutError):
        return NO_ANSWER
    if isinstance(error, OSError) and error.strerror:
        return redact(error.strerror)
    return "no HTTP was spoken" if isinstance(error, http.client.HTTPException) else type(error).__name__
