"""Group commit, with a writer that the test holds in its hand."""

import asyncio
import threading

import pytest

from campaigns.group_commit import GroupCommit, GroupCommitClosed


class Writer:
    """Doubles its numbers; can be made to wait, or to fail."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()
        self.go = threading.Event()
        self.go.set()
        self.begun = threading.Event()
        self.error: Exception | None = None

    def __call__(self, operations):
        self.threads.add(threading.get_ident())
        self.begun.set()
        self.go.wait(10)
        self.batches.append(list(operations))
        if self.error:
            raise self.error
        return [ValueError("odd") if number == 666 else number * 2 for number in operations]


@pytest.fixture
def writer():
    return Writer()


async def begun(writer: Writer) -> None:
    assert await asyncio.to_thread(writer.begun.wait, 10)


async def test_operations_are_written_together_in_the_order_of_their_submission(writer):
    group = GroupCommit(writer)
    assert await asyncio.gather(*(group.submit(n) for n in range(10))) == [n * 2 for n in range(10)]
    assert writer.batches == [list(range(10))]
    await group.close()


async def test_a_result_that_is_an_exception_is_raised_to_its_own_waiter_alone(writer):
    group = GroupCommit(writer)
    one, bad, two = await asyncio.gather(*(group.submit(n) for n in (1, 666, 2)), return_exceptions=True)
    assert (one, two) == (2, 4) and isinstance(bad, ValueError)
    await group.close()


async def test_an_outage_is_raised_to_every_waiter_of_its_batch_and_to_no_other(writer):
    group = GroupCommit(writer)
    writer.error = ConnectionError("the database is away")
    results = await asyncio.gather(*(group.submit(n) for n in range(3)), return_exceptions=True)
    assert all(isinstance(result, ConnectionError) for result in results)
    writer.error = None
    assert await group.submit(4) == 8
    await group.close()


async def test_a_batch_has_at_most_so_many_and_the_next_one_gathers_while_it_is_written(writer):
    group = GroupCommit(writer, most=4, gather_seconds=0)
    writer.go.clear()
    first = asyncio.gather(*(group.submit(n) for n in range(4)))
    await begun(writer)
    rest = asyncio.gather(*(group.submit(n) for n in range(4, 10)))
    await asyncio.sleep(0)
    writer.go.set()
    await asyncio.gather(first, rest)
    assert writer.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    await group.close()


async def test_a_waiter_cancelled_during_the_write_harms_nobody(writer):
    group = GroupCommit(writer, gather_seconds=0)
    writer.go.clear()
    tasks = [asyncio.create_task(group.submit(n)) for n in range(3)]
    await begun(writer)
    tasks[1].cancel()
    writer.go.set()
    assert await tasks[0] == 0 and await tasks[2] == 4
    with pytest.raises(asyncio.CancelledError):
        await tasks[1]
    assert writer.batches == [[0, 1, 2]]
    assert await group.submit(5) == 10
    await group.close()


async def test_an_operation_cancelled_before_its_batch_is_not_written(writer):
    group = GroupCommit(writer, gather_seconds=0)
    writer.go.clear()
    first = asyncio.create_task(group.submit(1))
    await begun(writer)
    second, third = asyncio.create_task(group.submit(2)), asyncio.create_task(group.submit(3))
    await asyncio.sleep(0)
    second.cancel()
    writer.go.set()
    assert await first == 2 and await third == 6
    assert writer.batches == [[1], [3]]
    await group.close()


async def test_after_close_nothing_is_accepted_and_what_waited_is_written(writer):
    group = GroupCommit(writer)
    waiting = asyncio.create_task(group.submit(1))
    await asyncio.sleep(0)
    await group.close()
    assert await waiting == 2
    with pytest.raises(GroupCommitClosed):
        await group.submit(2)
    assert writer.batches == [[1]]


async def test_all_is_written_by_one_thread(writer):
    group = GroupCommit(writer, most=1, gather_seconds=0)
    await asyncio.gather(*(group.submit(n) for n in range(20)))
    assert len(writer.threads) == 1 and threading.get_ident() not in writer.threads
    await group.close()


async def test_a_writer_that_loses_count_is_an_error_and_not_a_mixed_up_result():
    group = GroupCommit(lambda operations: operations[1:])
    results = await asyncio.gather(*(group.submit(n) for n in range(3)), return_exceptions=True)
    assert all(isinstance(result, RuntimeError) for result in results)
    await group.close()


async def test_a_submission_in_the_moment_the_last_batch_ends_is_not_forgotten(writer):
    group = GroupCommit(writer, gather_seconds=0)
    for number in range(50):
        assert await group.submit(number) == number * 2
    await group.close()
    assert repr(group) == "<GroupCommit closed: 0 waiting, 50 in 50 batches>"
