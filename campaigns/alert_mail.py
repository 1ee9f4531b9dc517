"""The e-mail to the operator: an ordinary campaign of one recipient, which fails over like any other."""

from __future__ import annotations

import secrets

from campaigns.address import normalise
from campaigns.errors import CampaignExists
from campaigns.ledger import CampaignRecord, Ledger, NewRecipient
from campaigns.policies import AlertPolicy

__all__ = ["send_alert_mail"]

STREAM = "transactional"
_FOOTER = "Times are UTC. `campaigns servers` shows how it is now; `campaigns events` lists what happened."


def send_alert_mail(ledger: Ledger, policy: AlertPolicy, name: str, *, subject: str, text: str) -> str:
    """Hand it to the workers, once for each `name`; the name of its campaign. Returns at once."""
    assert policy.email is not None
    address = normalise(policy.email)
    campaign = _campaign(ledger, name, policy.sender or policy.email)
    fields = {"subject": subject, "text": f"{text}\n\n{_FOOTER}\n"}  # no templates: events quote strangers
    recipient = NewRecipient(
        email=address.email, dedupe_key=address.dedupe_key, domain=address.domain, fields=fields
    )
    if campaign.status == "draft":
        ledger.add_recipients(campaign.id, [recipient])
        ledger.send(campaign.name)
    return campaign.name


def _campaign(ledger: Ledger, name: str, sender: str) -> CampaignRecord:
    """A draft, or what an interrupted try has left; beside a campaign of the operator's with that name."""
    try:
        return _create(ledger, name, sender)
    except CampaignExists:
        present = ledger.campaign(name)
        if present.purpose == "alert":
            return present
        return _create(ledger, f"{name}-{secrets.token_hex(4)}", sender)


def _create(ledger: Ledger, name: str, sender: str) -> CampaignRecord:
    return ledger.create_campaign(
        name,
        sender=sender,
        subject="{{ subject }}",
        text="{{ text }}",
        headers={"Auto-Submitted": "auto-generated"},  # RFC 3834: no vacation notice answers it
        stream=STREAM,
        purpose="alert",
    )
