"""One attempt: the way of one delivery through a worker, as a list of named steps.

    admit -> connect -> claim -> render -> send (commit point, dot) -> judge -> record -> pass on

Nothing is claimed before breaker and connection are ready for it. No transaction is open while the server
is spoken to. What comes of an attempt is a value; an exception here is a surprise, and is logged as one.
"""

import asyncio
import contextlib
import logging
import random
import time
from dataclasses import dataclass, replace
from enum import StrEnum

from campaigns.classifier import TOO_MANY_CONNECTIONS, Classification, Outcome, classify
from campaigns.decision import FULL_SECONDS, Decision, decide
from campaigns.errors import DatabaseUnavailable
from campaigns.health import Probe
from campaigns.ledger import Claim, Claimed, CommitPoint, DeadServer, Move, QueuedDelivery, Record, Recorded
from campaigns.message import RenderedMessage
from campaigns.queues import TaskResult
from campaigns.reply import Fault, Phase, SmtpResult, Stop, redact
from campaigns.states import State
from workers.connections import IDLE_SECONDS, ConnectionPool
from workers.leases import Lease
from workers.letters import Letter
from workers.log_format import redacted_traceback
from workers.pace import Hold
from workers.services import Services
from workers.smtp import STALE, Envelope, SmtpConnection, SmtpFailure
from workers.wait import Wait

__all__ = ["Attempt", "Job"]

log = logging.getLogger(__name__)

ANOTHER_SECONDS = (0.3, 1.3)
"""Mail that a full server holds is looked at again so soon, where there is another: it may go there."""

DECLARED_DEAD = SmtpResult(
    phase=Phase.CONNECT,
    reply=None,
    fault=Fault.REFUSED,
    dot_sent=False,
    stop=None,
    detail="declared dead by a drill",
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a task's arguments say: ids alone."""

    campaign: str
    delivery_id: int
    server: str

    @property
    def fields(self) -> dict[str, object]:
        """For the log."""
        return {"campaign": self.campaign, "delivery": self.delivery_id, "server": self.server}


class Step(StrEnum):
    """How far an attempt is; only while waiting or sending may a shutdown break it off."""

    WAITING = "waiting"
    CLAIMING = "claiming"
    SENDING = "sending"
    AT_DOT = "at the dot"
    RECORDING = "recording"


class Attempt:
    """One attempt of `job`. `run` does it, `stop` ends it early where that is safe."""

    def __init__(self, job: Job, services: Services) -> None:
        self.job = job
        self.step = Step.WAITING
        self.wait = Wait(services.awake)
        self.is_told_slow = False
        """Whether the board has been told already that the server keeps it waiting for too long."""
        self.token = ""
        """Of the trial that it is, if its server is on trial."""
        self._services = services
        self._domain = ""
        self._stopping = False
        self._is_terminated = False
        self._is_connecting = False
        self._broken_off_at: Phase | None = None
        self._is_reported = False
        self._connection: SmtpConnection | None = None
        self._task: asyncio.Task[TaskResult | None] | None = None
        self._started = time.monotonic()

    def __repr__(self) -> str:
        return f"<Attempt {self.job.delivery_id} via {self.job.server}: {self.step}>"

    def stop(self, *, even_at_the_dot: bool = False) -> None:
        """Break off what is before the dot; with `even_at_the_dot`, what waits for its reply too."""
        self._stopping = True
        breakable = self.step in (Step.WAITING, Step.SENDING) or (
            even_at_the_dot and self.step is Step.AT_DOT
        )
        if breakable and self._task is not None:
            self._task.cancel()

    @property
    def age_seconds(self) -> float:
        """How long ago it began to ask the server for anything."""
        return time.monotonic() - self._started

    @property
    def is_in_line(self) -> bool:
        """Whether it waits for a connection, and the server has been asked nothing for it."""
        return self._is_connecting and self.wait.phase is None

    def break_off(self) -> None:
        """The server has been given up: what waits for it in vain before the dot goes through another."""
        is_asking = self.wait.phase is not None and self.step in (Step.WAITING, Step.SENDING)
        is_over = self._stopping or self._broken_off_at is not None
        if (is_asking or self.is_in_line) and self._task is not None and not is_over:
            self._broken_off_at = self.wait.phase or Phase.CONNECT
            self._task.cancel()

    async def run(self) -> TaskResult | None:
        """Returns what Flower is to show; None when the attempt was stopped before it claimed anything.

        Who cancels this (`revoke --terminate`) stops the attempt, which ends in order: what was claimed is
        never left to a lease that nobody lets go.
        """
        self._task = asyncio.create_task(self._run())
        try:
            return await asyncio.shield(self._task)
        except asyncio.CancelledError:
            await self._end(self._task)
            raise

    async def _end(self, task: asyncio.Task[TaskResult | None]) -> None:
        """As a shutdown does it: the reply to a dot has its time, unless there was a stop before."""
        even_at_the_dot, self._is_terminated = self._stopping, not self._stopping
        while not task.done():
            self.stop(even_at_the_dot=even_at_the_dot)
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task}, timeout=self._services.delivery.shutdown_seconds)
            even_at_the_dot = True

    async def _run(self) -> TaskResult | None:
        try:
            while True:
                try:
                    return await self._deliver()
                except DatabaseUnavailable:
                    self._services.database_lost()
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            return None

    async def _deliver(self) -> TaskResult | None:
        self.step = Step.WAITING
        self._broken_off_at = None
        self._is_reported = False
        await self._services.database_ready()
        letter = await self._services.letters.of_campaign(self.job.campaign)
        if letter is None:
            return _ignored("no such campaign")
        self._domain = await self._services.domain_of(self.job.delivery_id)
        probe = await self._services.standing.admits(self.job.server, letter, self._domain)
        if probe is None:
            return await self._step_aside(letter, "server unavailable")
        self.token = probe.token
        try:
            drill = await self._services.standing.drill_of(self.job.server, letter, self._domain)
            if drill is not None:
                return await self._find_dead(letter, probe, drill)
            return await self._with_probe(letter, probe)
        finally:
            if not self._is_reported:
                await self._services.standing.release(probe)

    async def _find_dead(self, letter: Letter, probe: Probe, drill: DeadServer) -> TaskResult | None:
        """As if the server had refused; only a live drill is a fault that the breaker hears of."""
        if drill.is_live:
            return await self._not_connected(letter, probe, DECLARED_DEAD)
        return await self._step_aside(letter, _text(DECLARED_DEAD))

    async def _with_probe(self, letter: Letter, probe: Probe) -> TaskResult | None:
        hold = await self._services.pace.turn(self.job.server, self._domain, letter.stream)
        if hold is not None:
            return await self._come_back(letter, hold)
        self._started = time.monotonic()
        claim: tuple[Lease, Claimed] | None = None
        try:
            connection = await self._connect()
            claim = await self._claim_for(letter, connection)
        except SmtpFailure as failure:
            return await self._not_connected(letter, probe, failure.result)
        finally:
            if claim is None:
                self._services.pace.give_back(self.job.server, self._domain)
        if claim is None:
            return _ignored("not queued for this server any more")
        lease, claimed = claim
        result = await self._send_held(letter, connection, lease, claimed)
        return await self._settle_whatever_happens(letter, claimed, probe, lease, result)

    async def _connect(self, *, fresh: bool = False) -> SmtpConnection:
        """Raises SmtpFailure if there is no connection, or the server is given up before there is one."""
        self._is_connecting = True
        try:
            connection = await self._pool.acquire(self.wait, fresh=fresh)
        except asyncio.CancelledError:
            if self._broken_off_at is None:
                raise
            raise SmtpFailure(self._given_up()) from None
        finally:
            self._is_connecting = False
        # Python 3.11's wait_for loses the cancellation that comes together with what it waits for.
        if self._stopping or self._broken_off_at is not None:
            self._pool.release(connection)
            raise SmtpFailure(self._broken_off())
        return connection

    def _broken_off(self) -> SmtpResult:
        """What it comes to that it was broken off; whoever did it, a delivery that is claimed is settled.

        Whether there was a dot is for the step to say, never for the reason why it ends.
        """
        at_dot = self.step is Step.AT_DOT
        if self._broken_off_at is not None and not at_dot:
            return self._given_up()
        detail = "its task was terminated" if self._is_terminated else ""
        return _stopped(Stop.SHUTDOWN, dot_sent=at_dot, detail=detail)

    def _given_up(self) -> SmtpResult:
        """What it comes to that we broke it off; nobody else's cancellation is taken back."""
        if self._task is not None:
            self._task.uncancel()
        phase = self._broken_off_at or Phase.CONNECT
        detail = "not waited for any longer: the server is given up"
        return SmtpResult(
            phase=phase, reply=None, fault=Fault.TIMEOUT, dot_sent=False, stop=None, detail=detail
        )

    async def _settle_whatever_happens(
        self, letter: Letter, claimed: Claimed, probe: Probe, lease: Lease, result: SmtpResult
    ) -> TaskResult:
        """What the server said is recorded even if the worker ends: it waits for what is settling."""
        self._is_reported = True
        settling = asyncio.create_task(self._settle(letter, claimed, probe, result))
        self._services.settling.add(settling)
        settling.add_done_callback(self._services.settling.discard)
        settling.add_done_callback(lambda _: self._services.leases.let_go(lease))
        return await settling

    @property
    def _pool(self) -> ConnectionPool:
        return self._services.pool(self.job.server)

    async def _claim_for(self, letter: Letter, connection: SmtpConnection) -> tuple[Lease, Claimed] | None:
        """Claim, and give the connection back if there is nothing to send over it."""
        try:
            claim = await self._claim(letter)
        except BaseException:
            self._pool.release(connection)
            raise
        if claim is None:
            self._pool.release(connection)
        return claim

    async def _claim(self, letter: Letter) -> tuple[Lease, Claimed] | None:
        """The claim is never broken off: whether it was made must be known."""
        self.step = Step.CLAIMING
        services = self._services
        asked_at = services.leases.now()
        claimed = await services.group.submit(
            Claim(
                delivery_id=self.job.delivery_id,
                server=self.job.server,
                owner=services.owner,
                lease_seconds=services.delivery.lease_seconds,
                campaign_id=letter.campaign_id,
            )
        )
        if not isinstance(claimed, Claimed):
            return None
        self._started = time.monotonic()
        return services.leases.hold(claimed.delivery_id, claimed.fence, asked_at=asked_at), claimed

    async def _send_held(
        self, letter: Letter, connection: SmtpConnection, lease: Lease, claimed: Claimed
    ) -> SmtpResult:
        """Send under the lease, which is renewed until there is a result, at the dot too."""
        self._connection = connection
        try:
            if self._stopping:
                return _stopped(Stop.SHUTDOWN)
            rendered = letter.render(claimed)
            if isinstance(rendered, SmtpResult):
                return rendered
            return await self._send(rendered, lease)
        except SmtpFailure as failure:
            return failure.result
        except asyncio.CancelledError:
            return self._broken_off()
        except Exception:
            log.error(
                "an attempt failed in a way that nobody expected\n%s",
                redacted_traceback(claimed.email),
                extra=self.job.fields,
            )
            return _surprise(dot_sent=self.step is Step.AT_DOT)
        finally:
            self.step = Step.RECORDING
            if self._connection is not None:
                self._pool.release(self._connection)

    async def _send(self, message: RenderedMessage, lease: Lease) -> SmtpResult:
        """A reused connection that turns out to be dead costs one more try on a fresh one."""
        self.step = Step.SENDING
        result = await self._send_over(self._connection, message, lease)
        if result.detail != STALE or self._connection is None:
            return result
        stale, self._connection = self._connection, None
        self._pool.release(stale)
        self._connection = await self._connect(fresh=True)
        return await self._send_over(self._connection, message, lease)

    async def _send_over(
        self, connection: SmtpConnection | None, message: RenderedMessage, lease: Lease
    ) -> SmtpResult:
        assert connection is not None
        envelope = Envelope(
            sender=message.envelope_sender,
            recipient=message.envelope_recipient,
            smtputf8=message.smtputf8,
        )
        return await connection.send(
            envelope,
            message.body,
            commit_point=lambda: self._commit_point(lease),
            lease_valid=lease.is_valid,
            on_dot=lambda: self._at_dot(connection),
        )

    async def _commit_point(self, lease: Lease) -> Stop | None:
        """Durably: this attempt, and no other, may write the dot. None means go."""
        try:
            go = await self._services.group.submit(
                CommitPoint(delivery_id=lease.delivery_id, fence=lease.fence)
            )
        except DatabaseUnavailable:
            self._services.database_lost()
            return Stop.DATABASE
        return None if go is True else Stop.FENCED

    def _at_dot(self, connection: SmtpConnection) -> None:
        self.step = Step.AT_DOT
        self._broken_off_at = None
        self._pool.at_dot(connection)

    async def _settle(self, letter: Letter, claimed: Claimed, probe: Probe, result: SmtpResult) -> TaskResult:
        """Judge, decide, record, and pass on what goes to the other server."""
        services = self._services
        classification = classify(result)
        text = _text(result, claimed.email)
        await self._report(probe, classification, text)
        decision = await self._decide(letter, claimed, classification)
        record = replace(
            self._record(claimed, result, classification, decision, text), campaign_token=letter.token
        )
        try:
            recorded = await services.group.submit(record)
        except Exception as error:
            if not isinstance(error, DatabaseUnavailable):
                log.exception("an outcome was refused by the ledger", extra=self.job.fields)
            await services.keep(record)
            return _task_result(decision, f"{classification.outcome} (journaled)")
        await services.standing.carry_out(letter, decision, self.job.server, text)
        if isinstance(recorded, Recorded) and recorded.state is State.QUEUED and recorded.server:
            services.publisher.pass_on(self._passed_to(letter, recorded.server))
        return _task_result(decision, f"{classification.outcome} {text}".strip())

    async def _decide(self, letter: Letter, claimed: Claimed, classification: Classification) -> Decision:
        standing = self._services.standing
        facts = await standing.facts(letter, claimed, self.job.server, classification)
        return decide(classification, facts, self._services.delivery, standing.now(), random.random)

    async def _report(self, probe: Probe, classification: Classification, reason: str) -> None:
        """The report is of the server; whatever goes wrong with it must not cost the mail's outcome."""
        self._is_reported = True
        standing = self._services.standing
        try:
            if self.is_told_slow or self._broken_off_at is not None or self._is_one_too_many(classification):
                await standing.release(probe)
                return
            age_seconds, waited_seconds = self.age_seconds, self.wait.slowest_seconds
            await standing.report(
                probe, classification, reason, age_seconds=age_seconds, waited_seconds=waited_seconds
            )
        except Exception:
            log.exception("how a server did could not be reported", extra=self.job.fields)

    def _is_one_too_many(self, classification: Classification) -> bool:
        """Whether the server only has too many connections, of others; not if all hear so for long.

        Who waited in line has not asked it. Others may have idle connections for a while.
        """
        if classification.rule != TOO_MANY_CONNECTIONS:
            return False
        standing, server = self._services.standing, self.job.server
        most_seconds = standing.slow_seconds + (IDLE_SECONDS if standing.processes(server) > 1 else 0.0)
        is_recent = self._pool.shut_out_seconds < most_seconds
        return is_recent or not self.wait.slowest_seconds or standing.is_sent_through(server)

    def _record(
        self,
        claimed: Claimed,
        result: SmtpResult,
        classification: Classification,
        decision: Decision,
        text: str,
    ) -> Record:
        return Record(
            delivery_id=claimed.delivery_id,
            fence=claimed.fence,
            server=self.job.server,
            owner=self._services.owner,
            to=decision.to or State.PENDING,
            to_server=decision.to_server,
            wait_seconds=decision.wait_seconds,
            deferral=decision.deferral,
            from_committing=True,
            outcome=classification.recorded_as,
            phase=result.phase,
            code=result.reply.code if result.reply else None,
            enhanced=result.reply.enhanced if result.reply else None,
            reply=text,
            started_seconds_ago=time.monotonic() - self._started,
        )

    async def _not_connected(self, letter: Letter, probe: Probe, result: SmtpResult) -> TaskResult | None:
        if result.stop is Stop.SHUTDOWN:
            return None
        classification = classify(result)
        await self._report(probe, classification, _text(result))
        if classification.outcome is Outcome.FULL:
            seconds = classification.wait_seconds or FULL_SECONDS
            await self._services.standing.fill(self.job.server, seconds, _text(result))
        return await self._step_aside(letter, _text(result))

    async def _step_aside(self, letter: Letter, why: str) -> TaskResult:
        """Give the mail, which was never claimed, to another server; where there is none, let it wait."""
        other = self._another(letter)
        wait_seconds = 0.0 if other else self._services.standing.rest_seconds(letter.stream)
        return await self._move(letter, other, wait_seconds, why)

    async def _come_back(self, letter: Letter, hold: Hold) -> TaskResult:
        """Let the mail, which was never claimed, wait; not for long, if another server may be free."""
        wait_seconds = hold.wait_seconds
        if hold.is_servers and self._another(letter):
            wait_seconds = min(wait_seconds, random.uniform(*ANOTHER_SECONDS))  # noqa: S311 - jitter
        return await self._move(letter, None, wait_seconds, f"held by {hold.reason}")

    def _another(self, letter: Letter) -> str | None:
        standing = self._services.standing
        return standing.another(letter.stream, letter.sender, self._domain, self.job.server)

    async def _move(self, letter: Letter, other: str | None, wait_seconds: float, why: str) -> TaskResult:
        moved = await self._services.group.submit(
            Move(
                delivery_id=self.job.delivery_id,
                from_server=self.job.server,
                to_server=other,
                wait_seconds=wait_seconds,
                why=why,
                campaign_id=letter.campaign_id,
            )
        )
        if moved is not True:
            return _ignored("not queued for this server any more")
        if other is None:
            return _retry(f"waits {wait_seconds:.0f} s: {why}")
        self._services.publisher.pass_on(self._passed_to(letter, other))
        return _retry(f"rerouted to {other}: {why}")

    def _passed_to(self, letter: Letter, server: str) -> QueuedDelivery:
        return QueuedDelivery(
            delivery_id=self.job.delivery_id,
            campaign_id=letter.campaign_id,
            campaign_name=self.job.campaign,
            stream=letter.stream,
            server=server,
        )


def _stopped(stop: Stop, *, dot_sent: bool = False, detail: str = "") -> SmtpResult:
    phase = Phase.DOT if dot_sent else Phase.COMMIT
    return SmtpResult(phase=phase, reply=None, fault=None, dot_sent=dot_sent, stop=stop, detail=detail)


def _surprise(*, dot_sent: bool) -> SmtpResult:
    phase = Phase.DOT if dot_sent else Phase.BODY
    return SmtpResult(phase=phase, reply=None, fault=Fault.INTERNAL, dot_sent=dot_sent, stop=None)


def _text(result: SmtpResult, *addresses: str) -> str:
    """What happened, fit for a log: one line, without these addresses or any other."""
    if result.reply is not None:
        return redact(f"{result.reply.code} {result.reply.text}", known=addresses)
    words = f"{result.phase} {result.fault or result.stop or 'no reply'}"
    return redact(f"{words}: {result.detail}" if result.detail else words, known=addresses)


def _ignored(text: str) -> TaskResult:
    return TaskResult(state="IGNORED", result=text)


def _retry(text: str) -> TaskResult:
    return TaskResult(state="RETRY", result=text)


def _task_result(decision: Decision, text: str) -> TaskResult:
    match decision.task_state:
        case "success":
            return TaskResult(state="SUCCESS", result=text)
        case "failure":
            return TaskResult(state="FAILURE", result=text)
        case "ignored":
            return _ignored(text)
        case _:
            return _retry(f"{text}; to {decision.to_server}" if decision.to_server else text)
