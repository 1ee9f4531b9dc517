"""No address, body or secret in Redis, in a task's events, in a log, or in an event of the ledger."""

import re
import threading
from base64 import b64decode
from typing import Any

import redis

from campaigns.queues import create_app
from tests.acceptance.place import Place, eventually

SECRET = "zyxwv"
EMAILS = [f"{SECRET}+{number}@{SECRET}.example" for number in range(60)]


def _everything(client: "redis.Redis[bytes]") -> str:
    """All keys and values as text, and once more what is Base64 in them."""
    found = "\n".join(
        repr((key, _value(client, key)))
        for number in range(4)
        if client.select(number)
        for key in client.scan_iter(count=1000)
    )
    decoded = [b64decode(text + "==", validate=False) for text in re.findall(r"[A-Za-z0-9+/]{24,}", found)]
    return found + repr(decoded)


def _value(client: "redis.Redis[bytes]", key: bytes) -> object:
    match client.type(key):
        case b"list":
            return client.lrange(key, 0, -1)
        case b"hash":
            return client.hgetall(key)
        case b"set":
            return client.smembers(key)
        case b"zset":
            return client.zrange(key, 0, -1)
        case b"none":
            return None
        case _:
            return client.get(key)


def _listen(place: Place, events: list[dict[str, Any]], stop: threading.Event) -> None:
    app = create_app(place.settings)
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": events.append})
        while not stop.is_set():
            try:
                receiver.capture(limit=None, timeout=0.5, wakeup=False)
            except TimeoutError:
                continue


def test_addresses_stay_in_the_database(place: Place) -> None:
    reply = f"550 5.1.1 <{EMAILS[0]}>: Recipient address rejected: {EMAILS[0]} is unknown"
    place.secondary.set("rcpt", "reply", reply=reply)
    place.primary.set("dot", "reply", reply=f"250 2.0.0 queued for {EMAILS[1]}")
    events: list[dict[str, Any]] = []
    stop = threading.Event()
    listener = threading.Thread(target=_listen, args=(place, events, stop))
    listener.start()
    place.send("spring", EMAILS)
    place.start_workers()
    client = redis.Redis(unix_socket_path=str(place.settings.broker_socket), single_connection_client=True)
    seen = ""
    eventually(lambda: place.counts("spring").alive < len(EMAILS), what=place.logs)
    while place.counts("spring").alive:
        seen += _everything(client)
    seen += _everything(client)
    client.close()
    place.wait_until_finished("spring")
    eventually(lambda: sum(event["type"] == "task-succeeded" for event in events) > 20)
    stop.set()
    listener.join()
    place.judge("spring", EMAILS)
    assert '"delivery"' in seen, "the messages were seen, decoded"
    assert SECRET not in seen
    assert any(event["type"] == "task-failed" for event in events)
    assert SECRET not in repr(events)
    assert SECRET not in place.logs(lines=10_000)
    assert SECRET not in repr(place.ledger.events())
    assert all(SECRET not in str(delivery.reply) for delivery in place.ledger.deliveries("spring"))
