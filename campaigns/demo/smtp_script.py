"""What a scripted SMTP server is to do wrong, and when. Pure but for the dice."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["ACTIONS", "PHASES", "Misbehaviour", "Script", "ScriptMistake"]

EVERY = "every"
"""In place of a phase: whatever the server is asked. What it does while it reads a body is another matter."""
PHASES = ("greeting", "ehlo", "starttls", "auth", "mail", "rcpt", "data", "body", "dot", "rset", EVERY)
ACTIONS = (
    "reply", "delay", "drop", "stall", "drip", "garbage", "oversized", "cut", "inject",
    "accept-drop", "accept-stall",
)  # fmt: skip

_LOCAL_PART = re.compile(r"(mail|rcpt|data|body|dot)-(.+)")
_CODE = re.compile(r"([2-5]\d\d)(?:-([245]\.\d+\.\d+))?")
_REPLY = re.compile(r"[2-5]\d\d(?:[ -][^\r\n]*)?(?:\n[2-5]\d\d[ -][^\r\n]*)*")
_SECONDS = re.compile(r"(.+)-(\d+(?:\.\d+)?)")
_GREYLIST = re.compile(r"greylist(?:-(\d+))?")


class ScriptMistake(ValueError):  # noqa: N818 - it says what happened
    """The script cannot mean that. The message says what is possible."""


@dataclass(frozen=True, kw_only=True)
class Misbehaviour:
    """One thing to do wrong.

    `reply`: what to say, lines joined with a newline. `times`: how often, None for always. `after`: octets of
    the body that are read first. `seconds`: how long a delay is, and the pause between the bytes of a drip.
    """

    phase: str
    action: str
    reply: str | None = None
    times: int | None = None
    probability: float = 1.0
    after: int = 0
    seconds: float = 1.0

    def __post_init__(self) -> None:
        if self.phase not in PHASES:
            raise ScriptMistake(f"phase {self.phase!r} is none of {', '.join(PHASES)}")
        if self.action not in ACTIONS:
            raise ScriptMistake(f"action {self.action!r} is none of {', '.join(ACTIONS)}")
        if self.action.startswith("accept") and self.phase != "dot":
            raise ScriptMistake(f"action {self.action!r} is for the phase dot alone")
        if self.action == "reply" and (self.reply is None or not _REPLY.fullmatch(self.reply)):
            raise ScriptMistake(f"reply {self.reply!r} must be like '450 4.2.2 mailbox full'")

    @property
    def takes_the_mail(self) -> bool:
        """At the dot: whether the mail is accepted, whatever the client then hears of it."""
        answers = self.action in {"reply", "delay", "drip", "inject"}
        return self.action.startswith("accept") or (answers and (self.reply or "2").startswith("2"))

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Misbehaviour:
        """From JSON. Raises ScriptMistake."""
        unknown = set(fields) - set(cls.__dataclass_fields__)
        if unknown or not {"phase", "action"} <= set(fields):
            known = ", ".join(cls.__dataclass_fields__)
            raise ScriptMistake(f"needs phase and action, may have {known}; not {sorted(unknown)}")
        return cls(**fields)


@dataclass
class _Rule:
    """`used`: how often it has applied."""

    what: Misbehaviour
    used: int = 0


class Script:
    """What was set through the control channel, and what an address asks for."""

    def __init__(self, dice: random.Random | None = None) -> None:
        self._rules: list[_Rule] = []
        self._seen: Counter[str] = Counter()
        self._dice = dice or random.Random()  # noqa: S311 - no secret depends on it

    def set(self, misbehaviour: Misbehaviour) -> None:
        """Add a rule; the newest one of a phase that applies wins."""
        self._rules.insert(0, _Rule(misbehaviour))

    def clear(self) -> None:
        """Behave from now on."""
        self._rules.clear()

    def at(self, phase: str, address: str = "") -> Misbehaviour | None:
        """What to do wrong now. `address`: the sender at `mail`, the recipient later."""
        if not self._rules and "-" not in address and not address.startswith("greylist"):
            return None
        for rule in self._rules:
            if _is_for(rule.what, phase) and self._applies(rule):
                return rule.what
        return self._by_address(phase, address.partition("@")[0].partition("+")[0], address)

    def _applies(self, rule: _Rule) -> bool:
        if rule.what.times is not None and rule.used >= rule.what.times:
            return False
        if rule.what.probability < 1 and self._dice.random() >= rule.what.probability:
            return False
        rule.used += 1
        return True

    def _by_address(self, phase: str, local: str, address: str) -> Misbehaviour | None:
        if phase == "rcpt" and (grey := _GREYLIST.fullmatch(local)):
            self._seen[address] += 1
            patient = self._seen[address] > int(grey[1] or 1)
            reply = "451 4.7.1 Greylisted, try again later"
            return None if patient else Misbehaviour(phase=phase, action="reply", reply=reply)
        found = _LOCAL_PART.fullmatch(local)
        return _asked_for(phase, found[2]) if found and found[1] == phase else None


def _is_for(rule: Misbehaviour, phase: str) -> bool:
    return rule.phase == phase or (rule.phase == EVERY and phase != "body")


def _asked_for(phase: str, what: str) -> Misbehaviour | None:
    if code := _CODE.fullmatch(what):
        text = " ".join(part for part in (code[1], code[2], "as the address asks for") if part)
        return Misbehaviour(phase=phase, action="reply", reply=text, after=int(phase == "body"))
    if timed := _SECONDS.fullmatch(what):
        action, seconds = timed[1], float(timed[2])
    else:
        action, seconds = what, 1.0
    if action not in ACTIONS or (action.startswith("accept") and phase != "dot"):
        return None
    return Misbehaviour(phase=phase, action=action, seconds=seconds)
