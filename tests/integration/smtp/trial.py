"""One mail that is tried, and what is asked of us meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from campaigns.demo.smtp_server import ScriptedSmtpServer
from campaigns.reply import SmtpResult, Stop
from campaigns.settings import Server
from workers.deadlines import Deadlines
from workers.smtp import Envelope, SmtpConnection

BODY = b"Subject: Spring\r\nMessage-ID: <1@example.com>\r\n\r\nHello.\r\n"
QUICK = Deadlines(connect_seconds=0.5, command_seconds=0.4, body_seconds=0.6, dot_seconds=0.4)
PATIENT = Deadlines(connect_seconds=10, command_seconds=10, body_seconds=20, dot_seconds=10)

Dial = Callable[..., Awaitable[SmtpConnection]]


def configured(server: ScriptedSmtpServer, **fields: object) -> Server:
    given = {"name": "primary", "host": server.host, "port": server.port, "tls": "none", **fields}
    return Server.model_validate(given)


@dataclass
class Trial:
    """One mail to be sent, and what was asked of us meanwhile."""

    recipient: str = "bob@example.net"
    sender: str = "news@example.com"
    smtputf8: bool = False
    body: bytes = BODY
    stop: Stop | None = None
    lease: bool = True
    meanwhile: Callable[[], Awaitable[None]] | None = None
    asked: list[str] = field(default_factory=list)

    async def over(self, connection: SmtpConnection) -> SmtpResult:
        envelope = Envelope(sender=self.sender, recipient=self.recipient, smtputf8=self.smtputf8)
        return await connection.send(
            envelope, self.body, self._commit_point, lease_valid=self._lease_valid, on_dot=self._on_dot
        )

    async def _commit_point(self) -> Stop | None:
        self.asked.append("commit point")
        if self.meanwhile is not None:
            await self.meanwhile()
        return self.stop

    def _lease_valid(self) -> bool:
        self.asked.append("lease")
        return self.lease

    def _on_dot(self) -> None:
        self.asked.append("dot")


async def eventually(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until it is so; fail if it never is."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "it never came to be so"
        await asyncio.sleep(0.005)
