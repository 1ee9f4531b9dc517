"""Which limits have a say in a mail: the server's, the recipient domain's, and those of the two together."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime

from campaigns.ledger import Ledger, UsageRecord
from campaigns.limit import BUCKET_SECONDS, Limit
from campaigns.policies import ANY_DOMAIN
from campaigns.settings import Server, Settings
from campaigns.units import Rate

__all__ = ["Quotas", "Remembered"]

DAY_SECONDS = 86400
MOST_KNOWN = 10_000


class Quotas:
    """The limits of `settings`. `clock`: epoch seconds, for the day of a warm-up."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.time) -> None:
        self.settings = settings
        self._clock = clock
        self._known: dict[tuple[str, str, int], tuple[Limit, ...]] = {}

    def __repr__(self) -> str:
        limited = [server.name for server in self.settings.servers if self.of_server(server.name)]
        return f"<Quotas of {', '.join(limited) or 'nobody'}; by domain: {self.has_domain_limits}>"

    @property
    def has_domain_limits(self) -> bool:
        """Whether the recipient's domain makes a difference."""
        return bool(self.settings.limits) or any(server.domain_limits for server in self.settings.servers)

    def of(self, server: str, domain: str) -> tuple[Limit, ...]:
        """All that a mail to that domain through that server has to keep to."""
        key = (server, domain, int(self._clock() // DAY_SECONDS))
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= MOST_KNOWN:
                self._known.clear()
            known = (*self.of_server(server), *self.of_domain(domain), *self.of_pair(server, domain))
            self._known[key] = known
        return known

    def of_server(self, name: str) -> tuple[Limit, ...]:
        server = self.settings.server(name)
        limits = [_limit(f"server:{name}", rate, str(rate)) for rate in server.all_limits]
        return _tightest([*limits, *self._warm_up(server)])

    def of_domain(self, domain: str) -> tuple[Limit, ...]:
        """The same whichever server the mail goes through."""
        rates = _rates(self.settings.limits, domain)
        return tuple(_limit(f"domain:{domain}", rate, f"{rate} to {domain}") for rate in rates)

    def of_pair(self, name: str, domain: str) -> tuple[Limit, ...]:
        rates = _rates(self.settings.server(name).domain_limits, domain)
        text = f"to {domain} through {name}"
        return tuple(_limit(f"server:{name}:domain:{domain}", rate, f"{rate} {text}") for rate in rates)

    def outlived(self) -> Iterator[tuple[str, str]]:
        """Servers, and the names of their limits that were over with their warm-up."""
        for server in self.settings.servers:
            if server.warm_up is None:
                continue
            name = Limit.of(f"server:{server.name}", 0, DAY_SECONDS, "").name
            if all(limit.name != name for limit in self.of_server(server.name)):
                yield server.name, name

    def wait_seconds(self, server: str, seconds: float) -> float:
        """A wait for the server's limits: a warm-up allows more from midnight on."""
        if self.settings.server(server).warm_up is None:
            return seconds
        return min(seconds, DAY_SECONDS - self._clock() % DAY_SECONDS)

    def _warm_up(self, server: Server) -> Iterator[Limit]:
        if server.warm_up is None:
            return
        allowance = server.warm_up.allowance(datetime.fromtimestamp(self._clock(), UTC).date())
        if allowance is not None:
            begins = f" begins on {server.warm_up.start}" if allowance == 0 else ""
            text = f"{allowance}/d (warm-up{begins})"
            yield Limit.of(f"server:{server.name}", allowance, DAY_SECONDS, text)


def _limit(name: str, rate: Rate, text: str) -> Limit:
    return Limit.of(name, rate.count, rate.period_seconds, text)


def _rates(by_domain: Mapping[str, tuple[Rate, ...]], domain: str) -> tuple[Rate, ...]:
    return by_domain.get(domain, by_domain.get(ANY_DOMAIN, ()))


def _tightest(limits: Iterable[Limit]) -> tuple[Limit, ...]:
    """Of several for the same period, the lowest."""
    by_name: dict[str, Limit] = {}
    for limit in limits:
        known = by_name.get(limit.name)
        if known is None or limit.count < known.count:
            by_name[limit.name] = limit
    return tuple(by_name.values())


class Remembered:
    """What was sent before, of all limits that are counted by hour or day, from the ledger."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger

    @property
    def name(self) -> str:
        """Tells apart what is counted; not how much is allowed, which may change."""
        counted = [
            f"server:{server.name}/{period}"
            for server in self._settings.servers
            for period in _counted(server.all_limits, has_warm_up=server.warm_up is not None)
        ]
        counted += [f"domain:{domain}/{period}" for domain, period in _by_domain(self._settings.limits)]
        for server in self._settings.servers:
            for domain, period in _by_domain(server.domain_limits):
                counted.append(f"server:{server.name}:domain:{domain}/{period}")
        return hashlib.sha256("\n".join(sorted(counted)).encode()).hexdigest()[:12]

    def read(self) -> list[tuple[Limit, Sequence[tuple[float, int]]]]:
        """Raises DatabaseUnavailable."""
        found: dict[str, tuple[Limit, list[tuple[float, int]]]] = {}
        for period, bucket in BUCKET_SECONDS.items():
            for name, record in [*self._of_servers(period, bucket), *self._of_domains(period, bucket)]:
                limit = Limit.of(name, 0, period, "")
                found.setdefault(limit.name, (limit, []))[1].append((record.age_seconds, record.count))
        return list(found.values())

    def _of_servers(self, period: int, bucket: int) -> Iterator[tuple[str, UsageRecord]]:
        names = {
            server.name
            for server in self._settings.servers
            if period in _counted(server.all_limits, has_warm_up=server.warm_up is not None)
        }
        if names:
            for record in self._ledger.usage(period + bucket, bucket):
                if record.server in names:
                    yield f"server:{record.server}", record

    def _of_domains(self, period: int, bucket: int) -> Iterator[tuple[str, UsageRecord]]:
        by_domain = self._settings.limits
        by_pair = {server.name: server.domain_limits for server in self._settings.servers}
        domains = _domains([by_domain, *by_pair.values()], period)
        if domains is not None and not domains:
            return
        for record in self._ledger.usage_by_domain(period + bucket, bucket, domains):
            domain = record.domain or ""
            if period in _counted(_rates(by_domain, domain)):
                yield f"domain:{domain}", record
            if period in _counted(_rates(by_pair.get(record.server, {}), domain)):
                yield f"server:{record.server}:domain:{domain}", record


def _counted(rates: Iterable[Rate], *, has_warm_up: bool = False) -> set[int]:
    """The periods whose mails are counted."""
    periods = {rate.period_seconds for rate in rates if rate.period_seconds in BUCKET_SECONDS}
    return periods | {DAY_SECONDS} if has_warm_up else periods


def _by_domain(table: Mapping[str, tuple[Rate, ...]]) -> Iterator[tuple[str, int]]:
    for domain, rates in table.items():
        for period in _counted(rates):
            yield domain, period


def _domains(tables: Iterable[Mapping[str, tuple[Rate, ...]]], period: int) -> Collection[str] | None:
    """The domains that are counted for that period; None: any may be."""
    names = {domain for table in tables for domain, counted in _by_domain(table) if counted == period}
    return None if ANY_DOMAIN in names else names
