"""The journal: durable before it returns, replayed once, torn lines and dead writers tolerated."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from campaigns.errors import DatabaseUnavailable
from campaigns.ledger import Record
from campaigns.states import State
from workers.journal import Journal

RECORD = Record(
    delivery_id=7,
    fence=3,
    server="primary",
    owner="here-1",
    to=State.SENT,
    from_committing=True,
    outcome="sent",
    phase="dot",
    code=250,
    reply="250 ok",
    started_seconds_ago=1.5,
)


def taking(records: list[Record]) -> Callable[[list[Record]], bool]:
    def take(more: list[Record]) -> bool:
        records.extend(more)
        return True

    return take


def test_what_is_replayed_is_what_was_written_and_as_old_as_it_is(tmp_path: Path) -> None:
    now = [1000.0]
    journal = Journal(tmp_path, "me", wall_clock=lambda: now[0])
    journal.append(RECORD)
    now[0] += 10
    replayed: list[Record] = []
    assert journal.replay(taking(replayed)) == 1
    assert replayed[0].started_seconds_ago == 11.5
    assert replayed[0].to is State.SENT
    assert list(tmp_path.iterdir()) == []
    assert journal.replay(taking(replayed)) == 0


def test_an_outcome_is_on_the_disk_before_append_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not in a file, or not under its name, when these are synced, a loss of power may take."""
    synced: list[tuple[int, int, list[str]]] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        found = os.fstat(descriptor)
        synced.append((found.st_ino, found.st_size, [path.name for path in tmp_path.iterdir()]))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    journal = Journal(tmp_path, "me")
    for number in (1, 2):
        journal.append(RECORD)
        (path,) = tmp_path.iterdir()
        assert path.read_text().count("\n") == number
        assert synced[-1][:2] == (path.stat().st_ino, path.stat().st_size), "all of the file"
    of_names = [names for inode, _, names in synced if inode == tmp_path.stat().st_ino]
    assert of_names == [[path.name]], "its name, once, when that was the one that is looked for"
    assert path.name.endswith(".journal")
    journal.close()


def test_a_torn_last_line_does_not_harm_the_others(tmp_path: Path) -> None:
    dead = Journal(tmp_path, "dead")
    dead.append(RECORD)
    dead.close()
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text() + '{"delivery_id": 8, "fen')
    replayed: list[Record] = []
    other = Journal(tmp_path, "me")
    assert other.replay(taking(replayed)) == 1
    assert [record.delivery_id for record in replayed] == [7]
    assert list(tmp_path.iterdir()) == [], "nobody has to look at it"


def test_a_failed_replay_keeps_what_it_could_not_hand_over(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "me")
    journal.append(RECORD)

    def refuse(_: list[Record]) -> bool:
        raise DatabaseUnavailable("the database went away again")

    with pytest.raises(DatabaseUnavailable, match="went away"):
        journal.replay(refuse)
    replayed: list[Record] = []
    assert journal.replay(taking(replayed)) == 1


def test_what_is_appended_during_a_replay_is_not_lost(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "me")
    journal.append(RECORD)

    def append_one_more(_: list[Record]) -> bool:
        journal.append(RECORD)
        return True

    journal.replay(append_one_more)
    replayed: list[Record] = []
    assert journal.replay(taking(replayed)) == 1


def test_the_journal_of_a_living_process_is_left_to_it(tmp_path: Path) -> None:
    living = Journal(tmp_path, "living")
    living.append(RECORD)
    assert Journal(tmp_path, "me").replay(taking([])) == 0
    living.close()
    assert Journal(tmp_path, "me").replay(taking([])) == 1


def test_the_journal_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from workers.journal import Journal;"
        "from tests.unit.test_journal import RECORD;"
        "Journal(Path(sys.argv[1]), 'doomed').append(RECORD); os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, check=False, cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
    assert done.returncode == -9
    replayed: list[Record] = []
    assert Journal(tmp_path, "me").replay(taking(replayed)) == 1


def test_a_journal_that_was_never_written_leaves_no_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "none", "me")
    assert journal.replay(taking([])) == 0
    journal.close()
    assert not (tmp_path / "none").exists()


@contextmanager
def no_room() -> Iterator[None]:
    """What is written to any file is refused, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_journal_that_met_a_full_disk_takes_the_next_outcome(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "me")
    with no_room():
        with pytest.raises(OSError, match="too large"):
            journal.append(RECORD)
        journal.close()
    journal.append(replace(RECORD, delivery_id=8))
    replayed: list[Record] = []
    assert journal.replay(taking(replayed)) == 1
    assert [record.delivery_id for record in replayed] == [8]
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_does_not_keep_the_journals_of_others_from_being_replayed(tmp_path: Path) -> None:
    dead = Journal(tmp_path, "dead")
    dead.append(RECORD)
    dead.close()
    journal = Journal(tmp_path, "me")
    replayed: list[Record] = []
    with no_room():
        with pytest.raises(OSError, match="too large"):
            journal.append(RECORD)
        assert journal.replay(taking(replayed)) == 1
    assert len(replayed) == 1


def test_what_the_ledger_refuses_is_kept_for_a_person(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "me")
    journal.append(RECORD)
    journal.replay(lambda _: False)
    assert [path.suffix for path in tmp_path.iterdir()] == [".refused"]
    assert journal.replay(taking([])) == 0


def test_one_unreadable_journal_keeps_nobody_from_the_others(tmp_path: Path) -> None:
    (tmp_path / "aaa.journal").mkdir()
    (tmp_path / "bbb.journal").write_bytes(b"\xff\xfe nonsense\n")
    journal = Journal(tmp_path, "me")
    journal.append(RECORD)
    replayed: list[Record] = []
    assert journal.replay(taking(replayed)) == 1
    assert len(replayed) == 1
    assert (tmp_path / "bbb.refused").exists()


CROWD = """
import sys, time
from dataclasses import replace
from pathlib import Path
from tests.unit.test_journal import RECORD
from workers.journal import Journal

directory, owner, out = Path(sys.argv[1]), sys.argv[2], open(sys.argv[3], "a")
journal = Journal(directory, owner)
def take(records):
    out.writelines(f"{record.owner}:{record.delivery_id}\\n" for record in records)
    out.flush()
    return True
end = time.monotonic() + 2.0
number = 0
while time.monotonic() < end:
    for _ in range(20):
        journal.append(replace(RECORD, owner=owner, delivery_id=number))
        number += 1
    journal.replay(take)
print(number)
"""


def test_processes_that_append_and_replay_at_once_lose_nothing(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    directory = tmp_path / "journal"
    directory.mkdir()
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CROWD, str(directory), f"p{number}", str(tmp_path / f"out{number}")],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    written = {f"p{number}": int(child.communicate(timeout=60)[0]) for number, child in enumerate(children)}
    rest: list[Record] = []
    Journal(directory, "last").replay(taking(rest))
    seen = {line for number in range(3) for line in (tmp_path / f"out{number}").read_text().split()}
    seen |= {f"{record.owner}:{record.delivery_id}" for record in rest}
    assert seen == {f"{owner}:{n}" for owner, count in written.items() for n in range(count)}
