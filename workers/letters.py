"""What a worker keeps of each campaign: the compiled message and what routing needs to know of it."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parseaddr

from campaigns.errors import MessageError, TemplateError, UnknownCampaign
from campaigns.ledger import Claimed, Ledger
from campaigns.message import (
    CampaignContent,
    CompiledMessage,
    RecipientContent,
    RenderedMessage,
    compile_campaign,
)
from campaigns.reply import Fault, Phase, SmtpResult, redact

__all__ = ["Letter", "Letters"]

FRESH_SECONDS = 60.0
"""A campaign's content does not change once it was sent; a forgotten name is asked for again after this."""

MOST_CAMPAIGNS = 100


@dataclass(frozen=True, kw_only=True)
class Letter:
    """One campaign, ready to be rendered."""

    campaign_id: int
    name: str
    token: str
    stream: str
    sender: str
    purpose: str
    compiled: CompiledMessage

    def render(
        self, claimed: Claimed, *, clock: Callable[[], float] = time.time
    ) -> RenderedMessage | SmtpResult:
        """The message, or, when this recipient's cannot be made, a result that says why."""
        recipient = RecipientContent(
            delivery_id=claimed.delivery_id, email=claimed.email, fields=claimed.fields
        )
        try:
            return self.compiled.render(recipient, clock())
        except (TemplateError, MessageError) as error:
            return SmtpResult(
                phase=Phase.MAIL,
                reply=None,
                fault=Fault.RENDER,
                dot_sent=False,
                stop=None,
                detail=redact(str(error)),
            )


class Letters:
    """Letters by campaign name, read and compiled once."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._letters: dict[str, Letter] = {}
        self._unknown: dict[str, float] = {}
        self._lock = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<Letters: {len(self._letters)} campaigns>"

    async def of_campaign(self, name: str) -> Letter | None:
        """The letter, or None when there is no such campaign (a message of a ledger that is gone)."""
        if name in self._letters:
            return self._letters[name]
        async with self._lock:
            if name not in self._letters and time.monotonic() >= self._unknown.get(name, 0.0):
                await self._read(name)
        return self._letters.get(name)

    async def _read(self, name: str) -> None:
        try:
            self._keep(name, await asyncio.to_thread(self._load, name))
        except UnknownCampaign:
            self._unknown[name] = time.monotonic() + FRESH_SECONDS

    def _keep(self, name: str, letter: Letter) -> None:
        """The oldest are forgotten: a worker lives for months."""
        while len(self._letters) >= MOST_CAMPAIGNS:
            del self._letters[next(iter(self._letters))]
        self._letters[name] = letter

    def _load(self, name: str) -> Letter:
        campaign = self._ledger.campaign(name)
        content = CampaignContent(
            subject=campaign.subject,
            html=campaign.html,
            text=campaign.text,
            sender=campaign.sender,
            reply_to=campaign.reply_to,
            headers=campaign.headers,
            list_unsubscribe=campaign.list_unsubscribe,
            defaults=campaign.defaults,
            token=campaign.token,
        )
        return Letter(
            campaign_id=campaign.id,
            name=campaign.name,
            token=campaign.token,
            stream=campaign.stream,
            sender=parseaddr(campaign.sender)[1],
            purpose=campaign.purpose,
            compiled=compile_campaign(content),
        )
