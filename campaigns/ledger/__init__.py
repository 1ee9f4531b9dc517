"""The only writer of delivery state. Synchronous; every call is a short transaction of its own."""

from __future__ import annotations

from campaigns.ledger.alerts import AlertRecord, Alerts, TellableEvent
from campaigns.ledger.assignments import Assignments, Due, QueuedDelivery
from campaigns.ledger.batch import Batches
from campaigns.ledger.campaigns import CampaignSide, DeliveryRecord, Retried
from campaigns.ledger.counts import Counting, Counts, ServerCounts
from campaigns.ledger.drills import (
    DeadServer,
    DrillAttempt,
    DrillRecord,
    DrillResult,
    Drills,
    DrillStatus,
)
from campaigns.ledger.events import BlockRecord, EventRecord, Events
from campaigns.ledger.leases import Leases, LiveWorker, Swept
from campaigns.ledger.operations import (
    Claim,
    Claimed,
    CommitPoint,
    Move,
    Operation,
    Record,
    Recorded,
    Renew,
)
from campaigns.ledger.probes import ProbeRecord, Probes
from campaigns.ledger.recipients import (
    Added,
    Import,
    ImportProgress,
    NewRecipient,
    Recipients,
    Suppressed,
)
from campaigns.ledger.servers import Mode, ModeRecord, Servers
from campaigns.ledger.standbys import StandbyRecord, Standbys, StandbyState
from campaigns.ledger.status import CampaignRecord
from campaigns.ledger.usage import Usage, UsageRecord

__all__ = [
    "Added",
    "AlertRecord",
    "BlockRecord",
    "CampaignRecord",
    "Claim",
    "Claimed",
    "CommitPoint",
    "Counts",
    "DeadServer",
    "DeliveryRecord",
    "DrillAttempt",
    "DrillRecord",
    "DrillResult",
    "DrillStatus",
    "Due",
    "EventRecord",
    "Import",
    "ImportProgress",
    "Ledger",
    "LiveWorker",
    "Mode",
    "ModeRecord",
    "Move",
    "NewRecipient",
    "Operation",
    "ProbeRecord",
    "QueuedDelivery",
    "Record",
    "Recorded",
    "Renew",
    "Retried",
    "ServerCounts",
    "StandbyRecord",
    "StandbyState",
    "Suppressed",
    "Swept",
    "TellableEvent",
    "UsageRecord",
]


class Ledger(
    Batches,
    Assignments,
    Leases,
    CampaignSide,
    Counting,
    Recipients,
    Events,
    Servers,
    Drills,
    Standbys,
    Probes,
    Alerts,
    Usage,
):
    """Everything that may be asked of the ledger, of one database; safe to use from threads.

    `shard` spreads the counters: processes that write at the same time take different ones.
    Every method raises DatabaseUnavailable in an outage, and may be called again.
    """
