"""kombu's Redis transport, fetching, acknowledging and restoring in bulk.

Stock kombu spends four round trips and two new client objects on each message: BRPOP, then ZADD and HSET to
`unacked`, then ZREM and HDEL at the ack. Here one wake-up takes all that the prefetch window has room for,
popped and written to `unacked` in one atomic step on the server; acks are collected and written once per turn
of the event loop. The keys and what is in them are kombu's own: stock workers may read the same queues.

Besides, what a living worker holds is renewed, so that `visibility_timeout` can be short: only the messages
of the dead come back, and they come soon. Times are the server's: no worker's clock decides what is overdue.

An ack that is late, or lost with the connection, causes a redelivery; the ledger's claim makes it harmless.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from queue import Empty
from typing import Any

from kombu.transport import redis as stock
from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps

__all__ = ["Channel", "QoS", "Transport"]

log = logging.getLogger(__name__)

# The stubs know little of kombu's inside.
_StockQoS: Any = stock.QoS
_StockChannel: Any = stock.Channel
_StockTransport: Any = stock.Transport

_MOST_AT_ONCE = 500
_ACKS_AT_ONCE = 500

_TAKE = """
local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])
local room, taken = tonumber(ARGV[1]), {}

local function text(value)
  return cjson.encode(type(value) == 'string' and value or '')
end

-- What kombu stores: [message, exchange, routing key]. A message without a tag cannot be acknowledged; it is
-- handed over as it is, to be reported and dropped.
local function take(raw)
  taken[#taken + 1] = raw
  local ok, message = pcall(cjson.decode, raw)
  local properties = ok and type(message) == 'table' and message.properties
  local info = type(properties) == 'table' and properties.delivery_info
  if type(info) ~= 'table' or type(properties.delivery_tag) ~= 'string' then return end
  redis.call('ZADD', KEYS[1], now, properties.delivery_tag)
  redis.call('HSET', KEYS[2], properties.delivery_tag,
             '[' .. raw .. ', ' .. text(info.exchange) .. ', ' .. text(info.routing_key) .. ']')
end

take(ARGV[2])
for i = 3, #KEYS do
  while #taken < room do
    local raw = redis.call('RPOP', KEYS[i])
    if not raw then break end
    take(raw)
  end
end
return taken
"""

_RENEW = """
local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])
for _, tag in ipairs(ARGV) do redis.call('ZADD', KEYS[1], 'XX', now, tag) end
"""

# No renewal lies in the future, unless the server's clock was set back: it counts as one of now. The living
# renew theirs again, and the dead are overdue one visibility timeout later, not when the clock has caught up.
_PULL_BACK = """
local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])
for _, tag in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now, '+inf')) do
  redis.call('ZADD', KEYS[1], now, tag)
end
"""

# Whoever removes it from `unacked` puts it back: two workers that restore the same message make one of it.
_RESTORE = """
for i = 3, #KEYS do
  local tag, message = ARGV[2 * i - 5], ARGV[2 * i - 4]
  redis.call('ZREM', KEYS[1], tag)
  if redis.call('HDEL', KEYS[2], tag) == 1 then redis.call('RPUSH', KEYS[i], message) end
end
"""

_orphans: deque[str] = deque(maxlen=10_000)
"""Acks whose connection is gone: the next one writes them."""


def lost_connection(errors: Iterable[type[Exception]]) -> tuple[type[Exception], ...]:
    """A transport's connection errors without KeyError, which kombu counts among them: a message that lacks a
    key would take the connection down, come back with the next one, and do it again."""
    return tuple(error for error in errors if not issubclass(error, LookupError))


class QoS(_StockQoS):  # type: ignore[misc]  # see above
    """Knows what this worker holds; acknowledges and restores in bulk."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._acks: list[str] = []
        self.registered = False
        """True while the channel delivers what its script has written to `unacked` already."""

    @property
    def held(self) -> int:
        """Messages delivered and not acknowledged."""
        return len(self._delivered) - len(self._dirty)

    def can_consume(self) -> bool:
        """Refill when a quarter of the window is free: in handfuls, not one by one."""
        window = self.prefetch_count
        return not window or self.held < window - window // 4

    @property
    def room(self) -> int:
        return max(1, (self.prefetch_count or _MOST_AT_ONCE) - self.held)

    def append(self, message: Any, delivery_tag: str) -> None:
        if self.registered:
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        virtual.QoS.ack(self, delivery_tag)
        if self.channel.closed:
            _orphans.append(delivery_tag)
            return
        self._acks.append(delivery_tag)
        if len(self._acks) >= _ACKS_AT_ONCE:
            self.flush_acks()

    def flush_acks(self) -> None:
        """Write the acks collected. Raises the connection's errors; the next connection then writes them."""
        if not self._acks and not _orphans:
            return
        tags, self._acks = [*self._acks, *_orphans], []
        _orphans.clear()
        pipeline = self.channel.bulk_client.pipeline(transaction=False)
        pipeline.zrem(self.unacked_index_key, *tags).hdel(self.unacked_key, *tags)
        try:
            pipeline.execute()
        except Exception:
            _orphans.extend(tags)
            raise

    def renew(self) -> None:
        """Tell the server that what we hold is in living hands."""
        acked = self._dirty
        for tags in _chunks(tag for tag in tuple(self._delivered) if tag not in acked):
            self.channel.renew_script(keys=[self.unacked_index_key], args=tags)

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """At shutdown: what was acknowledged is written first, the rest goes back to its queue."""
        try:
            self.flush_acks()
        except self.channel.connection_errors:
            log.warning("the last acks could not be written: some messages will be delivered again")
        super().restore_unacked_once(stderr)

    def restore_unacked(self, client: Any = None) -> list[Any]:
        for tags in _chunks(tuple(self._delivered)):
            self.restore_tags(tags)
        self._delivered.clear()
        return []

    def restore_visible(self, start: int = 0, num: int | None = None, interval: int = 10) -> None:
        """Bring back what nobody renewed within the visibility timeout: its worker is dead."""
        self._vrestore_count += 1
        if (self._vrestore_count - 1) % (interval or 1):
            return
        client = self.channel.bulk_client
        try:
            with stock.Mutex(client, self.unacked_mutex_key, self.unacked_mutex_expire):
                self.channel.pull_back_script(keys=[self.unacked_index_key])
                seconds, microseconds = client.time()
                latest = seconds + microseconds / 1e6 - self.visibility_timeout
                while tags := client.zrangebyscore(
                    self.unacked_index_key, 0, latest, start=0, num=_MOST_AT_ONCE
                ):
                    self.restore_tags([bytes_to_str(tag) for tag in tags])
        except stock.MutexHeld:
            pass
        except self.channel.ResponseError as error:  # a full server, most likely
            log.warning("the broker refused to restore the messages of dead workers: %s", error)

    def restore_tags(self, tags: Sequence[str]) -> None:
        """Put these messages back where they are taken next. Those acknowledged meanwhile stay away."""
        keys, args, lost = [self.unacked_index_key, self.unacked_key], [], []
        for tag, value in zip(tags, self.channel.bulk_client.hmget(self.unacked_key, tags), strict=True):
            target = self.channel.restored(value) if value is not None else None
            if target is None:
                lost.append(tag)
            else:
                keys.append(target[0])
                args += [tag, target[1]]
        if args:
            self.channel.restore_script(keys=keys, args=args)
        if lost:
            self.channel.bulk_client.zrem(self.unacked_index_key, *lost)
            self.channel.bulk_client.hdel(self.unacked_key, *lost)


class Channel(_StockChannel):  # type: ignore[misc]  # see above
    """Takes messages in batches."""

    QoS = QoS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.bulk_client = self._create_client()
        self._take_script = self.bulk_client.register_script(_TAKE)
        self.renew_script = self.bulk_client.register_script(_RENEW)
        self.pull_back_script = self.bulk_client.register_script(_PULL_BACK)
        self.restore_script = self.bulk_client.register_script(_RESTORE)

    def restored(self, value: bytes) -> tuple[str, str] | None:
        """The list that a message from `unacked` belongs to, and the message, marked; None if it is none."""
        try:
            payload, exchange, routing_key = json.loads(value)
            payload["headers"]["redelivered"] = True
            payload["properties"]["delivery_info"]["redelivered"] = True
            (queue,) = filter(None, self._lookup(exchange, routing_key)[:1])
            target = self._q_for_pri(queue, self._get_message_priority(payload))
        except (ValueError, TypeError, KeyError, IndexError):
            log.error("a message that cannot be read was dropped from the unacknowledged ones")
            return None
        return target, dumps(payload)

    def _brpop_start(self, timeout: float | None = None) -> None:
        self.qos.flush_acks()
        super()._brpop_start(timeout)

    def _brpop_read(self, **options: Any) -> bool:
        try:
            key, first = self._popped(**options)
            queue = bytes_to_str(key).rsplit(self.sep, 1)[0]
            self._queue_cycle.rotate(queue)
            self._deliver_all(queue, self._take(queue, first))
            return True
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()

    def _popped(self, **options: Any) -> Any:
        connection = self.client.connection
        try:
            reply = self.client.parse_response(connection, "BRPOP", **options)
        except self.connection_errors:
            connection.disconnect()  # so that the next turn connects again
            raise
        if not reply:
            raise Empty
        return reply

    def _take(self, queue: str, first: bytes) -> list[bytes]:
        """The message that woke us and as many more as there is room for, the most urgent first."""
        room = 1 if self._closing else min(self.qos.room, _MOST_AT_ONCE)
        lists = [self._q_for_pri(queue, priority) for priority in self.priority_steps]
        keys = [self.unacked_index_key, self.unacked_key, *lists]
        try:
            taken: list[bytes] = self._take_script(keys=keys, args=[room, first])
        except self.ResponseError as error:
            # The server is full, most likely: what we have been given is not to be lost for that.
            log.error("the broker refused to note what a worker holds: %s", error)
            return [first]
        return taken

    def _deliver_all(self, queue: str, taken: Iterable[bytes]) -> None:
        self.qos.registered = True
        try:
            for raw in taken:
                self._deliver_one(queue, raw)
        finally:
            self.qos.registered = False

    def _deliver_one(self, queue: str, raw: bytes) -> None:
        payload = None
        try:
            payload = json.loads(raw)
            self.connection._deliver(payload, queue)
        except lost_connection(self.connection_errors):
            raise
        except Exception as error:
            log.error(
                "a message that cannot be read was dropped: %s", type(error).__name__, extra={"queue": queue}
            )
            tag = _tag(payload)
            if tag is not None:
                self.qos.ack(tag)


class Transport(_StockTransport):  # type: ignore[misc]  # see above
    """For the consuming side of a worker. Needs Redis 5 or Valkey."""

    Channel = Channel

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        super().register_with_event_loop(connection, loop)
        loop.on_tick.add(self._flush_acks)
        options = connection.client.transport_options
        visibility_seconds = options.get("visibility_timeout", Channel.visibility_timeout)
        loop.call_repeatedly(visibility_seconds / 3, self._renew)

    def _flush_acks(self) -> None:
        for qos in self._consuming():
            qos.flush_acks()

    def _renew(self) -> None:
        for qos in self._consuming():
            try:
                qos.renew()
            except qos.channel.ResponseError as error:
                log.warning("the broker refused to renew what this worker holds: %s", error)

    def _consuming(self) -> list[QoS]:
        return [channel._qos for channel in self.channels or () if channel._qos is not None]


def _tag(payload: Any) -> str | None:
    try:
        tag = payload["properties"]["delivery_tag"]
    except (TypeError, KeyError):
        return None
    return tag if isinstance(tag, str) else None


def _chunks(tags: Iterable[str], size: int = _MOST_AT_ONCE) -> Iterator[list[str]]:
    rest = iter(tags)
    while chunk := list(islice(rest, size)):
        yield chunk
