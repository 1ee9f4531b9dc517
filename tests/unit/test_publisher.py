"""What attempts pass on is published in batches; a broker that is away is told of once."""

import asyncio
from collections.abc import Sequence

import pytest

from campaigns.broker_outage import SETTLED_SECONDS, BrokerOutage
from campaigns.errors import BrokerUnavailable
from campaigns.ledger import QueuedDelivery
from workers.publisher import Publisher


def queued(number: int) -> QueuedDelivery:
    return QueuedDelivery(
        delivery_id=number, campaign_id=1, campaign_name="spring", stream="promotional", server="primary"
    )


async def test_a_broker_that_is_away_is_told_of_once_and_its_return(caplog: pytest.LogCaptureFixture) -> None:
    now, is_away, published = 0.0, True, []

    def publish(batch: Sequence[QueuedDelivery]) -> None:
        if is_away:
            raise BrokerUnavailable("the broker cannot be reached")
        published.extend(batch)

    outage = BrokerOutage("memory://publisher", monotonic=lambda: now)
    publisher = Publisher(publish, outage, gather_seconds=0.0)
    for number in range(5):
        publisher.pass_on(queued(number))
        await publisher.close()
    assert [record.getMessage() for record in caplog.records] == [
        "the broker takes no messages; what is queued is published when it does"
    ]
    is_away, now = False, SETTLED_SECONDS
    for number in range(3):
        publisher.pass_on(queued(number))
    await publisher.close()
    await asyncio.sleep(0)
    assert [one.delivery_id for one in published] == [0, 1, 2]
    assert [record.getMessage() for record in caplog.records][1:] == ["the broker takes messages again"]
