"""What a worker keeps of each campaign: the compiled message and what routing needs to know of it."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parseaddr
from weakref import WeakValueDictionary

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

MOST_CAMPAIGNS = 1_000
MOST_CHARACTERS = 20_000_000
"""Of all templates; compiled, each takes two octets in plain text, and fifteen among merge fields."""


@dataclass(frozen=True, kw_only=True)
class Letter:
    """One campaign, ready to be rendered."""

    campaign_id: int
    name: str
    token: str
    stream: str
    sender: str
    purpose: str
    characters: int
    """Of its templates: what it costs to keep it."""
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
    """Letters by campaign name, read and compiled once, as long as they are asked for."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        most_campaigns: int = MOST_CAMPAIGNS,
        most_characters: int = MOST_CHARACTERS,
    ) -> None:
        self._ledger = ledger
        self._most_campaigns = most_campaigns
        self._most_characters = most_characters
        self._letters: OrderedDict[str, Letter] = OrderedDict()
        self._characters = 0
        self._unknown: dict[str, float] = {}
        self._reading: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def __repr__(self) -> str:
        return f"<Letters: {len(self._letters)} campaigns>"

    async def of_campaign(self, name: str) -> Letter | None:
        """The letter, or None when there is no such campaign (a message of a ledger that is gone)."""
        if (kept := self._kept(name)) is not None:
            return kept
        reading = self._reading.setdefault(name, asyncio.Lock())  # of its own: a slow one holds up no other
        async with reading:
            letter = self._kept(name)
            if letter is None and time.monotonic() >= self._unknown.get(name, 0.0):
                letter = await self._read(name)
            return letter

    def _kept(self, name: str) -> Letter | None:
        letter = self._letters.get(name)
        if letter is not None:
            self._letters.move_to_end(name)
        return letter

    async def _read(self, name: str) -> Letter | None:
        try:
            letter = await asyncio.to_thread(self._load, name)
        except UnknownCampaign:
            self._unknown[name] = time.monotonic() + FRESH_SECONDS
            return None
        self._keep(name, letter)
        return letter

    def _keep(self, name: str, letter: Letter) -> None:
        """A worker lives for months: what is too much is forgotten."""
        self._letters[name] = letter
        self._characters += letter.characters
        while len(self._letters) > 1 and self._is_too_much:
            _, forgotten = self._letters.popitem(last=False)
            self._characters -= forgotten.characters

    @property
    def _is_too_much(self) -> bool:
        return len(self._letters) > self._most_campaigns or self._characters > self._most_characters

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
            characters=sum(map(len, (campaign.subject, campaign.html or "", campaign.text or ""))),
            compiled=compile_campaign(content),
        )
