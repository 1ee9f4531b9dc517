"""The circuit breaker of one server: a value and its transitions. Pure; time and chance are arguments.

closed -> open              faults in a row, a part of all mail, or nothing goes through for a while
open -> half-open           its cool-down is over
half-open -> closed         so many real mails went through, one at a time; it gets its load back in steps
half-open -> open           one of them did not
closed, at a step -> open   a fault at the first step; at a later one it goes back a step
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from typing import Any

from campaigns.policies import BreakerPolicy
from campaigns.tally import Tally

__all__ = ["CALM_SECONDS", "WHOLE", "Breaker", "BreakerState", "Fault"]

CALM_SECONDS = 60.0
"""A server that had all of its share for so long starts anew: its next cool-down is the first one."""
JITTER = 0.2
STALL_SECONDS = 2.0
"""From this wait on a fault may show that nothing goes through at all; refusals are faster."""
FAULTS_OF_A_STALL = 2
MANY_MAILS = 500
NOTHING_YET = Tally()
WHOLE = -1
"""The step of a server that has all of its share."""


class BreakerState(StrEnum):
    CLOSED = "closed"
    """Takes mail."""
    OPEN = "open"
    """Takes none until its cool-down is over."""
    HALF_OPEN = "half-open"
    """Takes one mail at a time, as a trial."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A mail that the server failed. `token`: of its trial, if it was one.

    `age_seconds`: how long ago the mail was begun. `waited_seconds`: how long one reply kept it waiting.
    `is_stuck`: whether every connection that the reporting process may have is waiting as long.
    """

    reason: str
    token: str = ""
    age_seconds: float = 0.0
    waited_seconds: float = 0.0
    is_stuck: bool = False

    def is_of_before(self, moment: float, now: float) -> bool:
        """Whether the mail was begun before that moment; of a moment in the future nobody knows."""
        return now - self.age_seconds < moment <= now


@dataclass(frozen=True, kw_only=True)
class Breaker:
    """Times are epoch seconds. `faults` are those in a row, the first at `first_fault_at`.

    `openings` and `setbacks` (faults that cost a step of the way back) in a row decide the cool-down. `probe`
    names the one mail that is under way while half-open, `passed` counts those that went through; `is_tried`:
    whether any was told of. `step` is an index of the policy's `failback_percent`, begun at `step_since`;
    `step_worked` mails went through it.
    """

    state: BreakerState = BreakerState.CLOSED
    since: float = 0.0
    reason: str = ""
    faults: int = 0
    first_fault_at: float = 0.0
    failed_checks: int = 0
    worked_at: float = 0.0
    openings: int = 0
    setbacks: int = 0
    open_until: float = 0.0
    probe: str = ""
    probe_until: float = 0.0
    passed: int = 0
    is_tried: bool = False
    step: int = WHOLE
    step_since: float = 0.0
    step_worked: int = 0
    full_from: float = 0.0
    full_until: float = 0.0
    full_reason: str = ""
    tally: Tally = NOTHING_YET

    # What it is.

    def is_full(self, now: float) -> bool:
        """Not before it became so either: a clock that was set back does not prolong it."""
        return self.full_from <= now < self.full_until

    def percent(self, policy: BreakerPolicy) -> int:
        """What it is given of its usual share, as far as its breaker has a say."""
        if self.state is not BreakerState.CLOSED:
            return 0
        return policy.failback_percent[self.step] if self.is_coming_back(policy) else 100

    def is_coming_back(self, policy: BreakerPolicy) -> bool:
        """Closed, and given a part of its share only."""
        steps = len(policy.failback_percent)
        return self.state is BreakerState.CLOSED and 0 <= self.step < steps - 1

    @property
    def told_state(self) -> BreakerState:
        """What it is for those who are told of changes: half-open only from the first mail on that tries it.

        So a server that is idle and dead, and whose cool-downs end in failed checks, stays open for them, and
        so does one that is tried again and again because no other is left.
        """
        is_untold = self.state is BreakerState.HALF_OPEN and not self.is_tried
        return BreakerState.OPEN if is_untold else self.state

    @property
    def is_pristine(self) -> bool:
        """Closed and whole, without a fault to forget: most mail finds a server so."""
        return self.state is BreakerState.CLOSED and self.step == WHOLE and not self.faults

    def is_trying(self, now: float, seconds: float) -> bool:
        """A trial is under way. One that seems to last longer than `seconds` is of before a clock step."""
        return 0 < self.probe_until - now <= seconds

    # What the passing of time makes of it.

    def at(self, now: float, policy: BreakerPolicy) -> Breaker:
        """Half-open after its cool-down; a step further after its time at this one, if mail went through."""
        return self._emptied(now)._cooled_down(now, policy)._further(now, policy)

    def _emptied(self, now: float) -> Breaker:
        if not self.full_until or self.is_full(now):
            return self
        return replace(self, full_from=0.0, full_until=0.0, full_reason="")

    def _cooled_down(self, now: float, policy: BreakerPolicy) -> Breaker:
        most_ahead = policy.longest_cool_down_seconds * (1 + JITTER)
        if self.state is not BreakerState.OPEN or 0 < self.open_until - now <= most_ahead:
            return self
        since = min(self.open_until, now)
        return replace(self, state=BreakerState.HALF_OPEN, since=since, reason="cool-down is over")

    def _further(self, now: float, policy: BreakerPolicy) -> Breaker:
        if not self.is_coming_back(policy) or not self.step_worked:
            return self
        if 0 <= now - self.step_since < self._step_seconds(policy):
            return self
        last = self.step + 1 >= len(policy.failback_percent) - 1
        step = WHOLE if last else self.step + 1
        reason = f"mail went through at {self.percent(policy)} %" + (", all of it is back" if last else "")
        return replace(self, step=step, step_since=now, step_worked=0, reason=reason)

    def _step_seconds(self, policy: BreakerPolicy) -> float:
        """Much longer after each setback, so that a server which fails now and then does not go to and fro.

        Very many mails without a fault are as good as a long time: a fault in thousands keeps nobody down.
        """
        if self.step_worked >= MANY_MAILS:
            return policy.failback_seconds
        longest = max(policy.longest_cool_down_seconds, policy.failback_seconds)
        return float(min(policy.failback_seconds * 4.0 ** min(self.setbacks, 15), longest))

    def eased(self, policy: BreakerPolicy) -> Breaker:
        """While no server takes mail a long cool-down helps nobody: the first one's length is enough."""
        if self.state is not BreakerState.OPEN:
            return self
        soonest = self.since + policy.cool_down_seconds * (1 + JITTER)
        return replace(self, open_until=min(self.open_until, soonest))

    # What is heard of it. All of these are to be asked of a breaker `at` the same time.

    def after_fault(
        self, fault: Fault, now: float, policy: BreakerPolicy, *, random: float, is_last: bool = False
    ) -> Breaker:
        """One more fault of the server's. While it is open, or for trials alone, others change nothing.

        `is_last`: no other server takes mail, so that its cool-down does not grow. A mail that was begun
        before the breaker closed tells of the time before, and is not held against it.
        """
        if self.state is BreakerState.HALF_OPEN and fault.token:
            return self._opened(now, policy, f"a trial mail failed: {fault.reason}", random, is_last)
        if self.state is not BreakerState.CLOSED or fault.is_of_before(self.since, now):
            return self
        counted = self._counted(now, policy)
        if reason := counted._too_much(fault, now, policy):
            return counted._opened(now, policy, reason, random, is_last)
        if not self.is_coming_back(policy) or fault.is_of_before(self.step_since, now):
            return counted
        if self.step > 0:
            return counted._a_step_back(now, fault.reason)
        reason = f"a fault at {self.percent(policy)} %: {fault.reason}"
        return counted._opened(now, policy, reason, random, is_last)

    def _counted(self, now: float, policy: BreakerPolicy) -> Breaker:
        return replace(
            self,
            faults=self.faults + 1,
            first_fault_at=self.first_fault_at if self.faults else now,
            tally=self.tally.plus(now, policy.window_seconds, bad=1),
        )

    def _too_much(self, fault: Fault, now: float, policy: BreakerPolicy) -> str:
        """Why the faults so far open it; empty if they do not."""
        if self.faults >= policy.consecutive_faults:
            seconds = max(0.0, now - self.first_fault_at)
            many = f"{self.faults} faults in {seconds:.1f} s" if self.faults > 1 else "a fault"
            return f"{many}: {fault.reason}"
        good, bad = self.tally.counts(now, policy.window_seconds)
        if good + bad >= policy.minimum_volume and bad >= policy.fault_ratio * (good + bad):
            percent = round(100 * bad / (good + bad))
            within = f"within {policy.window_seconds:g} s"
            return f"{percent} % of {good + bad} mails failed {within}: {fault.reason}"
        if self._is_stalled(fault, now, policy):
            return f"nothing went through for {fault.waited_seconds:.1f} s: {fault.reason}"
        return ""

    def _is_stalled(self, fault: Fault, now: float, policy: BreakerPolicy) -> bool:
        is_long = fault.waited_seconds >= min(STALL_SECONDS, policy.slow_seconds)
        in_vain = is_long and now - fault.waited_seconds > self.worked_at
        return in_vain and (fault.is_stuck or self.faults >= FAULTS_OF_A_STALL)

    def _a_step_back(self, now: float, reason: str) -> Breaker:
        return replace(
            self,
            step=self.step - 1,
            step_since=now,
            step_worked=0,
            setbacks=self.setbacks + 1,
            reason=f"a fault: {reason}",
        )

    def _opened(
        self, now: float, policy: BreakerPolicy, reason: str, random: float, is_last: bool
    ) -> Breaker:
        openings, setbacks = self._condemned(now, policy)
        if is_last:
            openings, setbacks = max(self.openings, 1), self.setbacks
        exponent = 0 if is_last else openings + setbacks - 1
        return replace(
            self,
            state=BreakerState.OPEN,
            since=now,
            reason=reason,
            openings=openings,
            setbacks=setbacks,
            open_until=now + cool_down_seconds(policy, exponent, random),
            probe="",
            probe_until=0.0,
            passed=0,
            is_tried=False,
            tally=NOTHING_YET,
        )

    def _condemned(self, now: float, policy: BreakerPolicy) -> tuple[int, int]:
        """Openings and setbacks with one more; those of before a calm time are forgotten."""
        is_whole = self.state is BreakerState.CLOSED and not self.is_coming_back(policy)
        if is_whole and not 0 <= now - self.step_since < CALM_SECONDS:
            return 1, 0
        return self.openings + 1, self.setbacks + (self.state is BreakerState.CLOSED and not is_whole)

    def after_successes(
        self, count: int, now: float, policy: BreakerPolicy, *, token: str = "", seconds_ago: float = 0.0
    ) -> Breaker:
        """So many mails went through, the last of them `seconds_ago`.

        While open that changes nothing; half-open, only trials count.
        """
        if self.state is BreakerState.HALF_OPEN and token:
            return self._passed(token, now, policy)
        if self.state is not BreakerState.CLOSED:
            return self
        tally = self.tally.plus(now, policy.window_seconds, good=count)
        worked_at = max(min(self.worked_at, now), now - seconds_ago)
        return replace(
            self,
            faults=0,
            failed_checks=0,
            worked_at=worked_at,
            step_worked=min(self.step_worked + count, MANY_MAILS),
            tally=tally,
        )

    def _passed(self, token: str, now: float, policy: BreakerPolicy) -> Breaker:
        passed = self.released(token)
        passed = replace(passed, passed=self.passed + 1, worked_at=now)
        return passed._closed(now, policy) if passed.passed >= policy.probes else passed

    def _closed(self, now: float, policy: BreakerPolicy) -> Breaker:
        mails = f"{self.passed} trial mails" if self.passed > 1 else "a trial mail"
        percent = policy.failback_percent[0]
        return replace(
            self,
            state=BreakerState.CLOSED,
            since=now,
            reason=f"{mails} went through; back at {percent} %",
            faults=0,
            failed_checks=0,
            probe="",
            probe_until=0.0,
            passed=0,
            is_tried=False,
            step=0 if percent < 100 else WHOLE,
            step_since=now,
            step_worked=0,
            tally=NOTHING_YET,
        )

    def after_check(
        self, error: str, now: float, policy: BreakerPolicy, *, random: float, is_last: bool = False
    ) -> Breaker:
        """An idle server was tried without a mail; `error` is empty where it answered.

        Failed checks in a row open it like mails that failed. One that went well is no mail that went
        through, so it closes nothing and takes no fault of a mail back.
        """
        if not error or self.state is BreakerState.OPEN:
            return replace(self, failed_checks=0) if self.failed_checks else self
        failed = replace(self, failed_checks=self.failed_checks + 1)
        if self.state is BreakerState.CLOSED and failed.failed_checks < policy.consecutive_faults:
            return failed
        reason = (
            f"{failed.failed_checks} checks in a row failed" if failed.failed_checks > 1 else "a check failed"
        )
        return failed._opened(now, policy, f"{reason}: {error}", random, is_last)

    def probed(self, now: float, *, token: str, seconds: float, is_told: bool = True) -> Breaker | None:
        """Half-open, `token` being the one mail that may pass until it expires; None if there is another.

        `is_told`: whether those who are told of changes hear of the trial.
        """
        if self.state is not BreakerState.HALF_OPEN or self.is_trying(now, seconds):
            return None
        is_tried = self.is_tried or is_told
        return replace(self, probe=token, probe_until=now + seconds, is_tried=is_tried)

    def released(self, token: str) -> Breaker:
        """The trial is over: the next may go at once."""
        return replace(self, probe="", probe_until=0.0) if token and token == self.probe else self

    def filled(self, now: float, *, until: float, reason: str = "") -> Breaker:
        """Full until then; an earlier time never shortens a later one."""
        if self.is_full(now):
            return replace(self, full_until=max(self.full_until, until))
        return replace(self, full_from=now, full_until=until, full_reason=reason)

    def emptied(self, reason: str) -> Breaker:
        """Not full any more, before its time."""
        return replace(self, full_from=0.0, full_until=0.0, full_reason=reason)

    # How it is kept.

    def to_dict(self) -> dict[str, Any]:
        """All that differs from a new one."""
        new = asdict(Breaker())
        values = {name: value for name, value in asdict(self).items() if value != new[name]}
        if "tally" in values:
            values["tally"] = self.tally.buckets
        return values

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    @classmethod
    def from_dict(cls, values: object) -> Breaker:
        """What nobody wrote, or nobody can read, is closed: health is learned anew."""
        if not isinstance(values, Mapping):
            return cls()
        try:
            return cls(
                **{
                    one.name: _read(one.default, values[one.name])
                    for one in fields(cls)
                    if one.name in values
                }
            )
        except (ValueError, TypeError, OverflowError):
            return cls()


def _read(default: object, value: Any) -> Any:
    """A field's value in the type of its default. Raises ValueError and TypeError for what is none."""
    if isinstance(default, Tally):
        return Tally(tuple((int(number), int(good), int(bad)) for number, good, bad in value))
    if isinstance(default, float) and isinstance(value, (int, float)):
        return float(value)
    if type(value) is not type(default) and not isinstance(default, BreakerState):
        raise TypeError(value)
    return BreakerState(value) if isinstance(default, BreakerState) else value


def cool_down_seconds(policy: BreakerPolicy, exponent: int, random: float) -> float:
    """The first one doubled so many times, a fifth shorter or longer, so that nothing returns in step."""
    doubled = policy.cool_down_seconds * 2.0 ** min(exponent, 30)
    return min(doubled, policy.longest_cool_down_seconds) * (1 + JITTER * (2 * random - 1))
