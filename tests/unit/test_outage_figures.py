"""The arithmetic of the outage benchmark: it must be able to show that something went wrong."""

from bench.outage_figures import FAILBACK, FAILOVER, Change, Outage, Verdict, figures, tables

FAULT_AT, RETURNED_AT = 1_000.0, 1_020.0


def steady(name: str, since: float, until: float, per_second: int) -> list[tuple[float, str]]:
    """Mails at even distances."""
    count = int((until - since) * per_second)
    return [(since + number / per_second, f"{name}{since}-{number}") for number in range(count)]


def outage(
    *,
    changes: list[Change] | None = None,
    primary: list[tuple[float, str]] | None = None,
    secondary: list[tuple[float, str]] | None = None,
    moved_off: frozenset[str] = frozenset(),
) -> Outage:
    return Outage(
        name="refusing",
        target_seconds=1.0,
        fault_at=FAULT_AT,
        returned_at=RETURNED_AT,
        emptied_at=FAULT_AT + 0.7,
        changes=changes or [],
        primary=primary or [],
        secondary=secondary or [],
        moved_off=moved_off,
    )


def test_the_failover_is_the_first_moved_mail_after_the_fault() -> None:
    secondary = [(999.0, "early"), (1_000.2, "its own"), (1_000.8, "moved"), (1_001.0, "moved too")]
    found = figures(outage(secondary=secondary, moved_off=frozenset({"early", "moved", "moved too"})))
    assert (found.to_secondary, found.to_emptied) == (0.8, 0.7)
    assert found.met_target


def test_a_failover_that_was_not_seen_misses_its_target() -> None:
    found = figures(outage(secondary=[(1_000.2, "its own")]))
    assert found.to_secondary is None
    assert not found.met_target


def test_a_pause_is_a_dip_to_nothing_of_its_length() -> None:
    primary = steady("p", 990.0, 1_000.0, 70)
    secondary = steady("s", 990.0, 1_000.0, 30) + steady("s", 1_002.0, 1_020.0, 80)
    found = figures(outage(primary=primary, secondary=secondary, changes=[(1_002.0, "breaker", "open")]))
    assert (found.usual, found.lowest, found.dip_seconds) == (100.0, 0.0, 2.0)
    assert found.alone == 0.8


def test_without_a_pause_there_is_no_dip() -> None:
    mails = steady("s", 990.0, 1_020.0, 100)
    found = figures(outage(secondary=mails))
    assert (found.lowest, found.dip_seconds) == (1.0, 0.0)


def test_the_failback_counts_from_the_return() -> None:
    changes = [
        (1_000.5, "breaker", "open"),
        (1_002.5, "breaker", "half-open"),
        (1_002.6, "breaker", "open"),
        (1_021.0, "breaker", "half-open"),
        (1_021.5, "breaker", "closed"),
        (1_021.5, "share", "10 %"),
        (1_036.5, "share", "100 %"),
    ]
    primary = [(1_021.2, "probe")]
    found = figures(outage(changes=changes, primary=primary))
    assert (found.to_open, found.breaker_changes) == (0.5, 5)
    failback = (found.to_half_open, found.to_first_mail, found.to_closed, found.to_whole)
    assert failback == (1.0, 1.2, 1.5, 16.5)


def test_the_tables_have_a_cell_for_each_column_and_say_what_was_not_seen() -> None:
    verdict = Verdict(lost=0, duplicates=1, uncertain=2, at_the_dot=3)
    failover, failback = tables([(figures(outage()), verdict)]).split("\n\n")
    assert failover.splitlines()[-1].count("|") == len(FAILOVER) + 1
    assert failback.splitlines()[-1].count("|") == len(FAILBACK) + 1
    assert "not seen" in failover and failback.endswith("| 0 | 1 | 2 (of 3 at the dot) |")
