"""What waits at the broker for a server: the other side of the ledger's `queued`."""

from __future__ import annotations

import json
import logging
from base64 import b64decode
from collections.abc import Iterable, Iterator
from typing import Any

import redis
from celery import Celery

from campaigns.broker import broker_errors, is_redis, redis_client
from campaigns.publishing import DELIVER_TASK, queue_keys, queue_name

__all__ = ["held_count", "waiting_count", "waiting_deliveries"]

log = logging.getLogger(__name__)

_CHUNK = 500
_UNACKED = "unacked"


def waiting_deliveries(broker: Celery | str, server: str) -> set[int] | None:
    """Ids of the deliveries whose message waits for this server or is in the hands of one of its workers.

    `broker` is the app or the broker's URL. Looks into all priorities and into `unacked`, in chunks: Redis is
    never blocked for long. None where it cannot be known (not a Redis broker). A message that moves
    while we look may be missed: judge only deliveries that have been queued for a while. Raises
    BrokerUnavailable.
    """
    broker_url = _url(broker)
    if not is_redis(broker_url):
        return None
    with broker_errors(broker_url), redis_client(broker_url) as client:
        return set(_deliveries(client, queue_name(server)))


def held_count(broker: Celery | str) -> int | None:
    """How many messages workers hold, of all queues; None where it cannot be known."""
    broker_url = _url(broker)
    if not is_redis(broker_url):
        return None
    with broker_errors(broker_url), redis_client(broker_url) as client:
        return int(client.hlen(_UNACKED))


def waiting_count(broker: Celery | str, server: str) -> int | None:
    """How many messages wait in the server's queue, all priorities; without those that workers hold."""
    broker_url = _url(broker)
    if not is_redis(broker_url):
        return None
    with broker_errors(broker_url), redis_client(broker_url) as client:
        pipeline = client.pipeline(transaction=False)
        for key in queue_keys(queue_name(server)):
            pipeline.llen(key)
        return sum(int(length) for length in pipeline.execute())


def _url(broker: Celery | str) -> str:
    return broker if isinstance(broker, str) else str(broker.conf.broker_url)


def _deliveries(client: redis.Redis, queue: str) -> Iterator[int]:
    # The way of a message is queue -> unacked, and back when a worker dies: look there first and last.
    yield from _delivery_ids(_unacked(client, queue))
    for key in queue_keys(queue):
        yield from _delivery_ids(_listed(client, key))
    yield from _delivery_ids(_unacked(client, queue))


def _listed(client: redis.Redis, key: str) -> Iterator[dict[str, Any]]:
    """From the left, where messages are pushed: what workers take on the right cannot make us skip any."""
    start = 0
    while chunk := client.lrange(key, start, start + _CHUNK - 1):
        yield from filter(None, map(_loads, chunk))
        start += len(chunk)


def _unacked(client: redis.Redis, queue: str) -> Iterator[dict[str, Any]]:
    """kombu keeps [message, exchange, routing key] under the delivery tag."""
    for _, value in client.hscan_iter(_UNACKED, count=_CHUNK):
        entry = _loads(value)
        if isinstance(entry, list) and len(entry) == 3 and entry[2] == queue:
            yield entry[0]


def _loads(raw: bytes | str) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return None


def _delivery_ids(messages: Iterable[dict[str, Any]]) -> Iterator[int]:
    for message in messages:
        try:
            if message["headers"]["task"] == DELIVER_TASK:
                yield int(json.loads(b64decode(message["body"]))[1]["delivery"])
        except (KeyError, ValueError, TypeError, IndexError):
            log.warning("a message in a server's queue is not one of ours")
