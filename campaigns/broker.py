"""The broker as a server: how to reach it without Celery, and whether it is fit for use."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from campaigns.errors import BrokerError, BrokerUnavailable

if TYPE_CHECKING:
    from campaigns.settings import Settings

__all__ = ["check_broker", "is_redis", "redis_client", "redis_url", "shown_url", "try_write"]

log = logging.getLogger(__name__)

CONNECT_SECONDS = 1.0
ANSWER_SECONDS = 5.0
_TAKES_NOTHING = re.compile(r"\b(OOM|MISCONF|READONLY|NOREPLICAS)\b")
"""Full, its disk full or broken, a replica, or a primary that lacks its replicas: all may pass."""
_TRIED_KEY, _TRIED_SECONDS = "campaigns:tried", 5


def is_redis(broker_url: str) -> bool:
    """True for Redis and Valkey, over TCP, TLS or a unix socket."""
    return urlsplit(broker_url).scheme in {"redis", "rediss", "redis+socket"}


def redis_url(broker_url: str) -> str:
    """kombu's form of an address in redis-py's form: `redis+socket://` becomes `unix://`."""
    parts = urlsplit(broker_url)
    query = dict(parse_qsl(parts.query))
    if parts.scheme == "redis+socket":
        query = {"db": query.get("virtual_host", "0")}
        return f"unix://{parts.netloc}{parts.path}?{urlencode(query)}"
    if "ssl_cert_reqs" in query:
        query["ssl_cert_reqs"] = query["ssl_cert_reqs"].removeprefix("CERT_").lower()
    return urlunsplit((parts.scheme, parts.netloc, parts.path, urlencode(query), ""))


def redis_client(
    broker_url: str, *, connect_seconds: float = CONNECT_SECONDS, answer_seconds: float = ANSWER_SECONDS
) -> redis.Redis:
    """A client for the broker's server; safe to share between threads.

    It tries once more, at once: a pooled connection may have died with the server's last restart.
    """
    return redis.Redis.from_url(
        redis_url(broker_url),
        socket_connect_timeout=connect_seconds,
        socket_timeout=answer_seconds,
        retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
    )


def address(broker_url: str) -> str:
    """The broker's address for people: without user or password."""
    parts = urlsplit(broker_url)
    return unquote(parts.path) if parts.scheme == "redis+socket" else f"{parts.hostname}:{parts.port or ''}"


def shown_url(broker_url: str) -> str:
    """`redis://127.0.0.1:6379`: the same with its scheme."""
    scheme = urlsplit(broker_url).scheme
    return address(broker_url) if scheme == "redis+socket" else f"{scheme}://{address(broker_url)}"


@contextmanager
def broker_errors(broker_url: str) -> Iterator[None]:
    """Translates what redis-py raises: BrokerUnavailable if to wait may help, else BrokerError."""
    where = address(broker_url)
    try:
        yield
    except redis.AuthenticationError as error:
        raise BrokerError(f"the broker at {where} refuses the user or the password") from error
    except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
        raise BrokerUnavailable(f"the broker at {where} cannot be reached: {_cause(error)}") from error
    except redis.RedisError as error:
        known = isinstance(error, (redis.OutOfMemoryError, redis.ReadOnlyError))
        if known or _TAKES_NOTHING.search(str(error)):
            raise BrokerUnavailable(f"the broker at {where} takes no messages: {_cause(error)}") from error
        raise BrokerError(f"the broker at {where} refused: {error}") from error


def check_broker(settings: Settings) -> None:
    """Refuses a Redis or Valkey server that may throw messages away. Says nothing about other brokers.

    Raises BrokerError with the remedy; BrokerUnavailable if it cannot be reached. A server that does not let
    its configuration be read (many hosted ones) is only warned about.
    """
    if not is_redis(settings.broker_url):
        return
    with broker_errors(settings.broker_url), redis_client(settings.broker_url) as client:
        client.ping()
        policy = _maxmemory_policy(client)
    if policy is None:
        log.warning("the broker does not tell its maxmemory-policy; it must be noeviction")
    elif policy != "noeviction":
        raise BrokerError(
            f"the broker at {address(settings.broker_url)} has maxmemory-policy {policy} and may throw"
            " messages away: set it to noeviction (redis-cli config set maxmemory-policy noeviction,"
            " and in its configuration file)"
        )


def try_write(settings: Settings) -> None:
    """Refuses a Redis or Valkey server that answers and takes nothing. Says nothing about other brokers.

    Leaves one small key, which is gone after some seconds. Raises BrokerUnavailable with the broker's words.
    """
    if not is_redis(settings.broker_url):
        return
    with broker_errors(settings.broker_url), redis_client(settings.broker_url) as client:
        client.set(_TRIED_KEY, "1", ex=_TRIED_SECONDS)


def _maxmemory_policy(client: redis.Redis) -> str | None:
    try:
        answer = client.config_get("maxmemory-policy")
    except redis.ResponseError:
        return None
    return {_text(key): _text(value) for key, value in answer.items()}.get("maxmemory-policy")


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _cause(error: BaseException) -> str:
    """In a few words: redis-py repeats the address."""
    said = re.sub(r"^Error \d+ connecting to \S+\. ", "", str(error).strip())
    return said.rstrip(".") or type(error).__name__
