"""What is published is what Celery would have published, and what waits can be read back."""

import json
import socket
import time
from base64 import b64decode

import pytest
import redis
from amqp.exceptions import MessageNacked, NotFound, RecoverableConnectionError
from kombu.transport.memory import Channel

from campaigns import publishing
from campaigns.broker import check_broker, redis_url, try_write
from campaigns.broker_queue import waiting_count, waiting_deliveries
from campaigns.errors import BrokerError, BrokerUnavailable
from campaigns.queues import create_app, nudge, publish_deliveries
from campaigns.settings import Settings
from tests.crowd import eventually
from tests.integration.celery.worker_process import Delivery

SERVERS = [{"name": "primary", "url": "smtp://127.0.0.1:2525", "tls": "none"}]
ORDINARY = "smtp.primary\x06\x163"


def decoded(raw):
    message = json.loads(raw)
    message["body"] = json.loads(b64decode(message["body"]))
    return message


@pytest.mark.parametrize("name", ["spring", "Größe \"50%\" 寿司 %(id)s 'x'", "@body@"])
def test_a_message_is_the_one_that_celery_itself_would_publish(app, client, name):
    delivery = Delivery(delivery_id=7, campaign_name=name)
    publish_deliveries(app, [delivery])
    ours = decoded(client.rpop(ORDINARY))
    app.send_task(
        "campaigns.deliver",
        kwargs=publishing.task_arguments(delivery),
        queue="smtp.primary",
        priority=3,
        task_id=ours["headers"]["id"],
        ignore_result=True,
    )
    stock = decoded(client.rpop(ORDINARY))
    for message in (ours, stock):
        message["properties"].pop("delivery_tag")
        message["properties"].pop("reply_to")
    assert ours.keys() == stock.keys()
    for part in ours:
        assert ours[part] == stock[part]


def test_a_task_id_is_readable_and_new_for_each_publication():
    delivery = Delivery(delivery_id=7, campaign_name="Spring sale, 50% off: ünïcode!")
    first, second = publishing.task_id(delivery), publishing.task_id(delivery)
    assert first.startswith("Spring-sale-50-off-n-code.7.primary.")
    assert first != second


def test_no_address_and_nothing_but_ids_is_in_the_arguments():
    arguments = publishing.task_arguments(Delivery(delivery_id=7))
    assert arguments == {"campaign": "quick", "delivery": 7, "server": "primary"}


def test_thousands_are_published_in_a_second_and_all_can_be_read_back(app):
    deliveries = [Delivery(delivery_id=n, stream="transactional" if n % 7 == 0 else "x") for n in range(5000)]
    began = time.monotonic()
    publish_deliveries(app, deliveries)
    assert time.monotonic() - began < 5  # 0.2 s on a machine with nothing else to do
    assert waiting_deliveries(app, "primary") == set(range(5000))
    assert waiting_deliveries(app.conf.broker_url, "secondary") == set()
    assert waiting_count(app, "primary") == 5000


def test_what_has_waited_elsewhere_goes_first_and_in_its_order(app, client):
    publish_deliveries(app, [Delivery(delivery_id=n) for n in (1, 2)])
    publish_deliveries(app, [Delivery(delivery_id=n) for n in (7, 8)], ahead=True)
    taken = [json.loads(client.rpop(ORDINARY)) for _ in range(4)]
    assert [message["headers"]["id"].split(".")[1] for message in taken] == ["7", "8", "1", "2"]


def test_what_is_not_ours_in_a_queue_is_passed_over(app, client):
    client.lpush("smtp.primary", b"junk", b"[]", b'{"headers": {"task": "other"}}')
    client.hset("unacked", "tag", b"junk")
    publish_deliveries(app, [Delivery(delivery_id=1)])
    assert waiting_deliveries(app, "primary") == {1}


def test_a_nudge_waits_in_the_control_queue(app, client):
    assert nudge(app)
    assert decoded(client.rpop("campaigns"))["headers"]["task"] == "campaigns.produce"


def test_a_broker_that_is_away_is_reported_at_once(app, broker):
    publish_deliveries(app, [Delivery(delivery_id=1)])
    broker.kill()
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable):
        publish_deliveries(app, [Delivery(delivery_id=2)])
    assert not nudge(app)
    with pytest.raises(BrokerUnavailable):
        waiting_deliveries(app, "primary")
    assert time.monotonic() - began < 3
    broker.start()
    publish_deliveries(app, [Delivery(delivery_id=3)])
    assert 3 in waiting_deliveries(app, "primary")


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
@pytest.mark.parametrize("port", ["closed", "silent"])
def test_no_kind_of_absence_takes_more_than_a_few_seconds(directory, scheme, port):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        number = listening.getsockname()[1]
        if port == "closed":
            listening.close()
        url = f"{scheme}://127.0.0.1:{number}//"
        app = create_app(Settings.model_validate({"directory": directory, "broker": url, "servers": SERVERS}))
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            publish_deliveries(app, [Delivery(delivery_id=1)])
        assert time.monotonic() - began < 5


@pytest.fixture
def kombu_app(directory):
    """It publishes as over AMQP, into kombu's own memory."""
    app = create_app(
        Settings.model_validate({"directory": directory, "broker": "amqp://h//", "servers": SERVERS})
    )
    app.conf.broker_url = "memory://"
    yield app
    Channel.queues.clear()


def waiting_in(queue):
    waiting = Channel.queues[queue].queue if queue in Channel.queues else ()
    return [json.loads(b64decode(message["body"]))[1]["delivery"] for message in waiting]


def test_through_kombu_mail_for_a_server_that_was_taken_out_stands_in_nobodys_way(kombu_app):
    """Over AMQP only our own queues are declared; whoever still reads the other one gets its message."""
    publish_deliveries(kombu_app, [Delivery(delivery_id=1, server="gone"), Delivery(delivery_id=2)])
    assert [waiting_in("smtp.gone"), waiting_in("smtp.primary")] == [[1], [2]]


MIXED = [Delivery(delivery_id=number, server=f"s{number % 3}") for number in range(9)]


class Refused:
    """A channel that cannot publish to one queue, and is closed by that, as by RabbitMQ."""

    def __init__(self, monkeypatch, queue, error):
        self.asked = []

        def basic_publish(channel, message, exchange, routing_key, **options):
            self.asked.append(routing_key)
            if channel.closed:
                raise RecoverableConnectionError("the channel is closed")
            if routing_key == queue:
                channel.close()
                raise error
            return publish(channel, message, exchange, routing_key, **options)

        publish = Channel.basic_publish
        monkeypatch.setattr(Channel, "basic_publish", basic_publish)


@pytest.mark.parametrize(
    ("error", "words"),
    [(NotFound("its node is down"), "its node is down"), (MessageNacked(), "MessageNacked")],
)
@pytest.mark.parametrize("server", ["s0", "s1", "s2"])
def test_through_kombu_a_queue_that_refuses_keeps_no_other_servers_mail_back(
    kombu_app, monkeypatch, server, error, words
):
    refused = Refused(monkeypatch, f"smtp.{server}", error)
    with pytest.raises(BrokerUnavailable, match=rf"takes no messages for smtp\.{server}: {words}"):
        publish_deliveries(kombu_app, MIXED)
    assert refused.asked.count(f"smtp.{server}") == 1
    for number in range(3):
        expected = [] if server == f"s{number}" else [number, number + 3, number + 6]
        assert waiting_in(f"smtp.s{number}") == expected


def test_through_kombu_a_connection_that_is_lost_is_not_tried_for_each_server(kombu_app, monkeypatch):
    refused = Refused(monkeypatch, "smtp.s0", RecoverableConnectionError("it is gone"))
    with pytest.raises(BrokerUnavailable, match="cannot be reached: it is gone"):
        publish_deliveries(kombu_app, MIXED)
    assert refused.asked == ["smtp.s0"]


def test_through_kombu_a_nudge_that_is_refused_is_no_error(kombu_app, monkeypatch):
    Refused(monkeypatch, "campaigns", MessageNacked())
    assert not nudge(kombu_app)


def test_a_full_broker_is_unavailable_and_takes_messages_again_when_it_has_room(app, client):
    client.config_set("maxmemory", 1)
    with pytest.raises(BrokerUnavailable, match="takes no messages"):
        publish_deliveries(app, [Delivery(delivery_id=1)])
    client.config_set("maxmemory", 0)
    publish_deliveries(app, [Delivery(delivery_id=1)])


def refuse_as_a_replica(client, directory):
    client.replicaof("127.0.0.1", 1)


def refuse_without_replicas(client, directory):
    client.config_set("min-replicas-to-write", 1)


def refuse_for_its_disk(client, directory):
    """Its dump cannot be written: where the file should be, there is a directory."""
    (directory / "valkey" / "dump.rdb").mkdir()
    client.config_set("save", "3600 1")
    client.bgsave()
    eventually(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")


@pytest.mark.parametrize("refuse", [refuse_as_a_replica, refuse_without_replicas, refuse_for_its_disk])
def test_a_broker_that_takes_no_writes_now_is_unavailable_not_wrong(app, settings, client, directory, refuse):
    publish_deliveries(app, [Delivery(delivery_id=1)])
    try_write(settings)
    refuse(client, directory)
    with pytest.raises(BrokerUnavailable, match="takes no messages"):
        publish_deliveries(app, [Delivery(delivery_id=2)])
    with pytest.raises(BrokerUnavailable, match="takes no messages"):
        try_write(settings)
    client.config_set("save", "")  # with a dump to write it would not end


def test_what_is_tried_leaves_nothing_for_long(settings, client):
    try_write(settings)
    assert [0 < client.ttl(key) <= 5 for key in client.scan_iter()] == [True]


def test_a_broker_that_may_throw_messages_away_is_refused(settings, client):
    check_broker(settings)
    client.config_set("maxmemory-policy", "allkeys-lru")
    with pytest.raises(BrokerError, match=r"allkeys-lru.*noeviction"):
        check_broker(settings)


def test_a_broker_that_does_not_tell_is_only_warned_about(settings, client, caplog):
    client.execute_command("ACL", "SETUSER", "default", "-config")
    check_broker(settings)
    assert "maxmemory-policy" in caplog.text


def test_addresses_are_translated_for_redis_py():
    assert redis_url("redis+socket:///a/b.sock?virtual_host=2") == "unix:///a/b.sock?db=2"
    assert redis_url("redis://u:p@h:1/3") == "redis://u:p@h:1/3"
    assert redis_url("rediss://h:1/0?ssl_cert_reqs=CERT_REQUIRED") == "rediss://h:1/0?ssl_cert_reqs=required"
    for url in ("redis+socket:///a/b.sock", "rediss://h:1/0?ssl_cert_reqs=CERT_NONE"):
        redis.Redis.from_url(redis_url(url)).close()
