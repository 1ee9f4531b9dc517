"""A campaign through `campaigns up`, with the primary server killed in the middle.

    python -m bench.failover [--recipients 20000] [--processes 2] [--connections 40] [--postgresql]

First the baseline: the same mails over plain aiosmtplib with as many connections to one server of the same
kind, without a queue and without a ledger. Then the campaign, over two servers that sync each mail to disk
before they answer. Prints mails per second, their ratio, seconds from the kill to the first mail that the
other server took, and the peak memory of each process. The exit status is 1 if anybody was lost or served
twice. With `--no-kill` nobody dies.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import aiosmtplib
import psutil

from bench.installation import TEXT, Installation, fresh_database
from campaigns.demo.smtp_process import SmtpServerProcess
from campaigns.states import State, Status


def main() -> int:
    options = parse()
    with (
        tempfile.TemporaryDirectory(prefix="campaigns-bench-") as folder,
        fresh_database(postgresql=options.postgresql) as url,
    ):
        directory = Path(folder)
        baseline = baseline_rate(directory, options)
        figures = run_campaign(directory, url, options)
    figures["baseline_mails_per_second"] = round(baseline, 1)
    figures["ratio"] = round(options.recipients / figures.pop("seconds") / baseline, 2)
    print(json.dumps(figures, indent=2))
    return 1 if figures["lost"] or figures["duplicates"] else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--recipients", type=int, default=20_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--connections", type=int, default=40)
    parser.add_argument("--postgresql", action="store_true")
    parser.add_argument("--no-kill", dest="kill", action="store_false")
    return parser.parse_args()


def baseline_rate(directory: Path, options: argparse.Namespace) -> float:
    """Mails a second over plain aiosmtplib, reused connections, one process."""
    count: int = min(options.recipients, 5_000)
    with SmtpServerProcess(directory / "baseline.jsonl", name="baseline") as server:
        began = time.monotonic()
        asyncio.run(send_plainly(server.port, count, options.connections))
        return count / (time.monotonic() - began)


async def send_plainly(port: int, count: int, connections: int) -> None:
    numbers = iter(range(count))
    message = TEXT.replace("\n", "\r\n")

    async def sender() -> None:
        async with aiosmtplib.SMTP(hostname="127.0.0.1", port=port, use_tls=False, start_tls=False) as client:
            for number in numbers:
                await client.sendmail("news@example.com", [f"r{number}@example.com"], message)

    await asyncio.gather(*(sender() for _ in range(connections)))


def run_campaign(directory: Path, url: str, options: argparse.Namespace) -> dict[str, Any]:
    with Installation(
        directory, database=url, processes=options.processes, connections=options.connections
    ) as installation:
        memory = Memory(installation.up.pid)
        installation.add_campaign("bench", options.recipients)
        began = time.time()
        installation.client.campaign("bench").send()
        killed_at = follow(installation, options)
        seconds = time.time() - began
        memory.stop()
        return installation.judged(["bench"]) | {
            "seconds": seconds,
            "mails_per_second": round(options.recipients / seconds, 1),
            "failover_seconds": failover_seconds(installation.secondary, killed_at),
            "peak_memory_megabytes": memory.peaks(),
        }


def follow(installation: Installation, options: argparse.Namespace) -> float | None:
    killed_at: float | None = None
    ledger = installation.client.ledger
    while (counts := ledger.counts("bench")).status is not Status.FINISHED:
        if options.kill and killed_at is None and counts.states[State.SENT] >= 0.4 * options.recipients:
            installation.primary.kill()
            killed_at = time.time()
        time.sleep(0.2)
    return killed_at


def failover_seconds(secondary: SmtpServerProcess, killed_at: float | None) -> float | None:
    """To the first mail after the kill that the secondary took."""
    if killed_at is None:
        return None
    return round(min(mail.at for mail in secondary.records() if mail.at > killed_at) - killed_at, 3)


class Memory:
    """The peak resident memory of a process and of all that it started."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._peaks: dict[tuple[int, str], int] = {}
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def peaks(self) -> dict[str, float]:
        return {
            f"{name} ({pid})": round(octets / 1e6, 1) for (pid, name), octets in sorted(self._peaks.items())
        }

    def _watch(self) -> None:
        while not self._stopped.wait(0.2):
            with contextlib.suppress(psutil.Error):
                for process in (root := psutil.Process(self._pid), *root.children(recursive=True)):
                    key = (process.pid, _name(process))
                    self._peaks[key] = max(self._peaks.get(key, 0), process.memory_info().rss)


def _name(process: psutil.Process) -> str:
    words = process.cmdline()
    queue = words[words.index("-Q") + 1] if "-Q" in words else ""
    return queue or ("up" if "up" in words else process.name())


if __name__ == "__main__":
    sys.exit(main())
