"""Whose fault was it? Pure; the rules are data (reply_rules.toml).

First a known rule; then the enhanced status code (RFC 3463 and IANA's registry); then the basic code and the
phase (RFC 5321 section 4.2). Nothing that is unknown is ever a success.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from importlib.resources import files
from typing import Any

from campaigns.reply import Fault, Phase, Reply, SmtpResult, Stop

__all__ = ["TOO_MANY_CONNECTIONS", "Classification", "Outcome", "Rule", "Scope", "classify", "load_rules"]

TOO_MANY_CONNECTIONS = "too-many-connections"
"""The rule for a connection that is refused because there are too many, but for which the server is well."""


class Outcome(StrEnum):
    SENT = "sent"
    REJECTED = "rejected"
    """The recipient or the message, for good."""
    DEFERRED = "deferred"
    """The recipient's side, for now."""
    UNREACHABLE = "unreachable"
    """The server's fault."""
    FULL = "full"
    """A quota of the server's, or of this recipient's there, in words that do not tell which."""
    POLICY = "policy"
    """Our own configuration: sender, authentication of mail, reputation."""
    UNCERTAIN = "uncertain"
    """The dot was sent and no definite reply came."""
    STOPPED = "stopped"
    """We ended it ourselves, before the dot."""


class Scope(StrEnum):
    """What the outcome is true of."""

    RECIPIENT = "recipient"
    MESSAGE = "message"
    SERVER = "server"
    SENDER = "sender"
    SERVER_DOMAIN = "server-domain"


@dataclass(frozen=True, kw_only=True)
class Classification:
    outcome: Outcome
    scope: Scope
    rule: str
    wait_seconds: float | None = None
    counts_against_server: bool = False
    stop: Stop | None = None
    counts_if_none_is_sent: bool = False
    """It counts against the server as well, unless other mail goes through it at the time."""
    is_answer: bool = False
    """Whether it was said of this mail: in reply to RCPT, DATA or the dot, and not in words that mean us."""
    of_our_account: bool = False
    """Whether it was said in such a reply, but in words that mean us."""

    @property
    def recorded_as(self) -> str:
        """The outcome as its attempt keeps it.

        A refusal by policy of this message, or of this server by this domain, is told apart: it must never
        add up to taking the server off the sender or to pausing the campaign. So is a quota of our account:
        it is no reason to give up the mail that heard of it.
        """
        if self.of_our_account:
            return f"{self.outcome}-account"
        if self.outcome is Outcome.POLICY and self.scope in {Scope.MESSAGE, Scope.SERVER_DOMAIN}:
            return f"{self.outcome}-{self.scope}"
        return str(self.outcome)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One line of knowledge. A field that is None matches anything."""

    name: str
    outcome: Outcome
    scope: Scope
    phases: frozenset[Phase] | None
    code: re.Pattern[str] | None
    enhanced: re.Pattern[str] | None
    text: re.Pattern[str] | None
    wait_seconds: float | None
    counts_against_server: bool
    counts_if_none_is_sent: bool
    of_our_account: bool
    sample: tuple[Phase, Reply]
    source: str

    def matches(self, phase: Phase, reply: Reply, text: str) -> bool:
        """`text` is the reply's as `flat` makes it, so that this is done once."""
        return (
            (self.phases is None or phase in self.phases)
            and (self.code is None or self.code.fullmatch(str(reply.code)) is not None)
            and (self.enhanced is None or self.enhanced.fullmatch(reply.enhanced or "") is not None)
            and (self.text is None or self.text.search(text) is not None)
        )


ANSWERS_THE_MESSAGE = frozenset({Phase.DATA, Phase.BODY, Phase.COMMIT, Phase.DOT})
ANSWERS_THE_MAIL = ANSWERS_THE_MESSAGE | {Phase.RCPT}
SETTING_UP = frozenset({Phase.CONNECT, Phase.GREETING, Phase.EHLO, Phase.STARTTLS, Phase.AUTH})
OF_THE_CONNECTION = frozenset({421, 432, 454, 523, 524, 530, 534, 535, 538})
"""Shutting down, authentication, encryption: never said of a recipient or a mail (RFC 5321, 4954, 3207)."""
UNKNOWN_COMMAND = frozenset({500, 502, 503})
UNKNOWN_PARAMETER = frozenset({501, 504, 555})
"""The command is known; what follows it is refused: an address, a parameter (RFC 5321 section 4.2.2)."""
UNIT_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
LONGEST_WAIT_SECONDS = 86400.0
MOST_READ = 2_000
LINE_BREAK = re.compile(r"\s*[\r\n]+\s*(?:[245]\.\d{1,3}\.\d{1,3}\s+)?")
WAIT = re.compile(
    r"(?:in|after|for|wait|within)\s+(?:at least\s+|about\s+)?(\d{1,6})\s*"
    r"(seconds?|secs?|s|minutes?|mins?|m|hours?|hrs?|h|days?|d)\b",
    re.IGNORECASE | re.ASCII,  # beyond ASCII there is a letter that is an s, but no unit
)

OF_WHOM = re.compile(r"<[^<>]*>|\S+@\S+|recipient address rejected", re.IGNORECASE)
"""Words that tell nothing of whose quota it is: addresses, and what Postfix puts before a refusal at RCPT."""
OF_A_MAILBOX = re.compile(
    r"\b(?:recipient|mailbox|inbox|incoming|inbound|receiving|can receive)\b", re.IGNORECASE
)
OF_US = re.compile(
    r"\b(?:relay|relaying|sen[dt]|sending|sender|submission|customer|tenant|client|your?|smtp)\b",
    re.IGNORECASE,
)
COME_AGAIN = re.compile(r"\b(?:try|retry|again|back|wait)\b.{0,20}\d", re.IGNORECASE)


def classify(result: SmtpResult) -> Classification:
    """Say what one attempt came to. Total: every result has an answer, and only an `ok` one is SENT."""
    if result.ok:
        return judged(Outcome.SENT, Scope.RECIPIENT, "accepted")
    if result.dot_sent:
        return after_the_dot(result)
    if result.stop is not None:
        return Classification(
            outcome=Outcome.STOPPED, scope=Scope.SERVER, rule=f"stop-{result.stop}", stop=result.stop
        )
    if result.fault is not None:
        return by_fault(result.fault)
    return by_reply(result.phase, result.reply)


def after_the_dot(result: SmtpResult) -> Classification:
    """Only a well-formed refusal of the whole mail is definite; all else may have been accepted."""
    definite = result.phase is Phase.DOT and result.fault is None
    if definite and result.reply is not None and result.reply.is_refusal:
        return by_reply(Phase.DOT, result.reply)
    silent = result.fault is not Fault.INTERNAL and result.stop is None
    return Classification(
        outcome=Outcome.UNCERTAIN, scope=Scope.SERVER, rule="no-reply-to-dot", counts_against_server=silent
    )


def by_fault(fault: Fault) -> Classification:
    if fault in {Fault.UTF8, Fault.SIZE}:
        # Another server may be able to carry it, so it is handled like a refusal of our configuration.
        return judged(Outcome.POLICY, Scope.MESSAGE, f"fault-{fault}")
    if fault is Fault.RENDER:
        return judged(Outcome.REJECTED, Scope.MESSAGE, "fault-render")
    if fault is Fault.INTERNAL:
        # Neither the server's fault nor, surely, the recipient's: later again, until it is given up.
        return judged(Outcome.DEFERRED, Scope.MESSAGE, "fault-internal")
    return judged(Outcome.UNREACHABLE, Scope.SERVER, f"fault-{fault}")


def by_reply(phase: Phase, reply: Reply | None) -> Classification:
    if reply is None or not reply.is_refusal:
        return judged(Outcome.UNREACHABLE, Scope.SERVER, "unexpected-reply")
    found = (
        by_rules(phase, reply)
        or asked_to_wait(phase, reply)
        or by_enhanced_status(phase, reply)
        or by_basic_code(phase, reply)
    )
    is_of_mail = phase in ANSWERS_THE_MAIL
    of_our_account = is_of_mail and found.of_our_account
    return replace(found, is_answer=is_of_mail and not of_our_account, of_our_account=of_our_account)


def flat(text: str) -> str:
    """One line: a phrase may be broken over lines, each of which repeats the enhanced status code."""
    return LINE_BREAK.sub(" ", text[:MOST_READ])


def by_rules(phase: Phase, reply: Reply) -> Classification | None:
    text = flat(reply.text)
    for rule in load_rules():
        if rule.matches(phase, reply, text):
            return by_rule(rule, reply)
    return None


def by_rule(rule: Rule, reply: Reply) -> Classification:
    return Classification(
        outcome=rule.outcome,
        scope=rule.scope,
        rule=rule.name,
        wait_seconds=stated_wait(reply.text) or rule.wait_seconds,
        counts_against_server=rule.counts_against_server,
        counts_if_none_is_sent=rule.counts_if_none_is_sent,
        of_our_account=rule.of_our_account and not may_mean_a_mailbox(reply),
    )


def may_mean_a_mailbox(reply: Reply) -> bool:
    """Whether a quota may be the recipient's: the words name him, or the status does and they not us."""
    text = OF_WHOM.sub(" ", flat(reply.text))
    is_of_mailbox = reply.enhanced is not None and reply.enhanced[1:].startswith(".2.")
    return OF_A_MAILBOX.search(text) is not None or (is_of_mailbox and OF_US.search(text) is None)


def asked_to_wait(phase: Phase, reply: Reply) -> Classification | None:
    """Before a recipient was named, a server that says when to come again means all of our mail."""
    if reply.code >= 500 or phase not in SETTING_UP | {Phase.MAIL} or not COME_AGAIN.search(flat(reply.text)):
        return None
    wait_seconds = stated_wait(reply.text)
    if wait_seconds is None:
        return None
    return judged(Outcome.FULL, Scope.SERVER, f"asked-to-wait-{phase}", wait_seconds)


def by_enhanced_status(phase: Phase, reply: Reply) -> Classification | None:
    """RFC 3463 and IANA's registry of enhanced status codes; None where it has no say."""
    if reply.enhanced is None or phase in SETTING_UP or reply.code in OF_THE_CONNECTION:
        return None
    _, subject, detail = map(int, reply.enhanced.split("."))
    known = ENHANCED_STATUS.get((subject, detail), ENHANCED_STATUS.get((subject, None)))
    if phase in ANSWERS_THE_MAIL:
        known = OF_THIS_MAIL.get((subject, detail), known)
    if subject == 7 and phase in ANSWERS_THE_MESSAGE:
        known = SECURITY_OF_MESSAGE.get(detail, MESSAGE)
    if known is None or (phase is Phase.MAIL and known.scope is Scope.RECIPIENT):
        return None
    outcome = known.for_now if reply.code < 500 else known.for_good
    if outcome is None or (phase is Phase.DATA and subject == 3):
        return None
    return judged(outcome, known.scope, f"status-{reply.enhanced}", stated_wait(reply.text))


@dataclass(frozen=True)
class Meaning:
    """What a status means at 4yz and at 5yz; None: the basic code decides."""

    for_now: Outcome | None
    for_good: Outcome | None
    scope: Scope


RECIPIENT = Meaning(Outcome.DEFERRED, Outcome.REJECTED, Scope.RECIPIENT)
MESSAGE = Meaning(Outcome.DEFERRED, Outcome.REJECTED, Scope.MESSAGE)
SENDER = Meaning(Outcome.DEFERRED, Outcome.POLICY, Scope.SENDER)
SERVER = Meaning(Outcome.UNREACHABLE, Outcome.UNREACHABLE, Scope.SERVER)
QUOTA = Meaning(Outcome.FULL, Outcome.FULL, Scope.SERVER)
LISTED = Meaning(Outcome.DEFERRED, Outcome.POLICY, Scope.SERVER_DOMAIN)

ENHANCED_STATUS: Mapping[tuple[int, int | None], Meaning] = {
    (1, None): RECIPIENT,
    (1, 7): SENDER,
    (1, 8): SENDER,
    (2, None): RECIPIENT,
    (2, 3): MESSAGE,
    (3, 1): SERVER,
    (3, 2): Meaning(Outcome.DEFERRED, Outcome.UNREACHABLE, Scope.SERVER),
    (3, 3): MESSAGE,
    (3, 4): Meaning(Outcome.DEFERRED, Outcome.POLICY, Scope.MESSAGE),
    (3, 5): SERVER,
    (3, 0): Meaning(Outcome.UNREACHABLE, None, Scope.SERVER),
    (4, None): RECIPIENT,
    (4, 2): Meaning(Outcome.UNREACHABLE, Outcome.REJECTED, Scope.SERVER),
    (4, 5): Meaning(Outcome.UNREACHABLE, Outcome.REJECTED, Scope.SERVER),
    (5, 3): QUOTA,
    (6, None): MESSAGE,
    (6, 7): Meaning(Outcome.POLICY, Outcome.POLICY, Scope.MESSAGE),
    (7, None): RECIPIENT,
    (7, 8): SERVER,
    (7, 9): SERVER,
    (7, 10): SERVER,
    (7, 11): SERVER,
    (7, 12): SERVER,
    (7, 13): SERVER,
    (7, 14): SERVER,
    **{(7, detail): SENDER for detail in (20, 21, 22, 23, 24, 26, 27, 29)},
    (7, 25): LISTED,
    (7, 28): LISTED,
}

OF_THIS_MAIL = dict.fromkeys(
    [(3, 5), *((7, detail) for detail in range(8, 15))],
    Meaning(Outcome.UNREACHABLE, Outcome.POLICY, Scope.SERVER),
)
"""Of the server, it seems; if it is said for good of one mail, another server may take that one.

Said of several domains' it is the server's configuration, or ours: like any refusal by policy.
"""

SECURITY_OF_MESSAGE = {
    detail: meaning
    for (subject, detail), meaning in ENHANCED_STATUS.items()
    if subject == 7 and meaning in (SENDER, LISTED)
}
"""Of X.7.z what can be said of a mail: it is not told of the session's authentication and encryption."""


def by_basic_code(phase: Phase, reply: Reply) -> Classification:
    """RFC 5321 section 4.2: the code and the command it answers."""
    wait_seconds = stated_wait(reply.text)
    name = f"code-{reply.code}-{phase}"
    if is_of_the_server(phase, reply.code):
        return judged(Outcome.UNREACHABLE, Scope.SERVER, name)
    if phase is Phase.DOT and reply.code in UNKNOWN_PARAMETER | {500}:
        return judged(Outcome.POLICY, Scope.MESSAGE, name)  # another server may understand this mail
    if phase is Phase.MAIL:
        temporary = judged(Outcome.UNREACHABLE, Scope.SERVER, name)
        return temporary if reply.code < 500 else judged(Outcome.POLICY, Scope.SENDER, name)
    if phase is Phase.DATA:
        return refused_unread(name, reply)
    scope = Scope.RECIPIENT if phase is Phase.RCPT else Scope.MESSAGE
    outcome = Outcome.DEFERRED if reply.code < 500 else Outcome.REJECTED
    return judged(outcome, scope, name, wait_seconds)


def is_of_the_server(phase: Phase, code: int) -> bool:
    """Whether a code says nothing of who or what was named.

    501 to RCPT is the address's. 501 to MAIL is the sender's: that one is the same for all.
    """
    if phase in SETTING_UP or code in OF_THE_CONNECTION:
        return True
    if code in UNKNOWN_PARAMETER:
        return phase not in {Phase.MAIL, Phase.RCPT, Phase.DOT}
    return code in UNKNOWN_COMMAND and (phase, code) != (Phase.DOT, 500)


def refused_unread(name: str, reply: Reply) -> Classification:
    """The recipient was accepted and the mail is not known yet: it is the server that does not go on.

    Another one is tried at once. What each of them refuses so for good, fails.
    """
    if reply.code < 500:
        return judged(Outcome.UNREACHABLE, Scope.SERVER, name)
    return Classification(outcome=Outcome.POLICY, scope=Scope.MESSAGE, rule=name, counts_against_server=True)


def judged(outcome: Outcome, scope: Scope, rule: str, wait_seconds: float | None = None) -> Classification:
    return Classification(
        outcome=outcome,
        scope=scope,
        rule=rule,
        wait_seconds=wait_seconds,
        counts_against_server=outcome is Outcome.UNREACHABLE,
    )


def stated_wait(text: str) -> float | None:
    """The seconds that a reply asks us to wait ("try again in 5 minutes"), at most a day."""
    found = WAIT.search(text)
    if found is None:
        return None
    return min(int(found[1]) * UNIT_SECONDS[found[2][0].lower()], LONGEST_WAIT_SECONDS)


@cache
def load_rules() -> tuple[Rule, ...]:
    """The rules of reply_rules.toml, in their order."""
    table = tomllib.loads(files("campaigns").joinpath("reply_rules.toml").read_text(encoding="utf-8"))
    return tuple(read_rule(row, table["phases"]) for row in table["rule"])


def read_rule(row: Mapping[str, Any], phase_sets: Mapping[str, list[str]]) -> Rule:
    outcome = Outcome(row["outcome"])
    phases = phase_sets[row["phases"]] if "phases" in row else None
    return Rule(
        name=row["name"],
        outcome=outcome,
        scope=Scope(row["scope"]),
        phases=None if phases is None else frozenset(map(Phase, phases)),
        code=compiled(row.get("code")),
        enhanced=compiled(row.get("enhanced")),
        text=compiled(row.get("text")),
        wait_seconds=row.get("wait_seconds"),
        counts_against_server=row.get("counts_against_server", outcome is Outcome.UNREACHABLE),
        counts_if_none_is_sent=row.get("counts_if_none_is_sent", False),
        of_our_account=row.get("of_our_account", False),
        sample=(Phase(row["sample"]["phase"]), read_reply(row["sample"]["reply"])),
        source=row["source"],
    )


def read_reply(line: str) -> Reply:
    """A reply as it is written down: the code, a space, the text."""
    code, _, text = line.partition(" ")
    return Reply.parse(int(code), text)


def compiled(pattern: str | None) -> re.Pattern[str] | None:
    return None if pattern is None else re.compile(pattern, re.IGNORECASE | re.DOTALL)
