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
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import aiosmtplib
import psutil

from campaigns.client import Client, connect
from campaigns.demo.smtp_process import SmtpServerProcess
from campaigns.settings import load_settings
from campaigns.states import State, Status

CONFIGURATION = """
database = "{database}"
broker = "embedded"
[[servers]]
name = "primary"
url = "smtp://127.0.0.1:{primary}"
tls = "none"
weight = 70
connections = {connections}
[[servers]]
name = "secondary"
url = "smtp://127.0.0.1:{secondary}"
tls = "none"
weight = 30
connections = {connections}
"""
TEXT = "Dear {{ name }},\n\n" + "this is a line of the letter that everybody gets once.\n" * 50


def main() -> int:
    options = parse()
    with tempfile.TemporaryDirectory(prefix="campaigns-bench-") as folder, database(options) as url:
        directory = Path(folder)
        baseline = baseline_rate(directory, options)
        with (
            SmtpServerProcess(directory / "primary.jsonl", name="primary") as primary,
            SmtpServerProcess(directory / "secondary.jsonl", name="secondary") as secondary,
        ):
            configuration = CONFIGURATION.format(
                database=url or f"sqlite:///{directory}/campaigns.db",
                primary=primary.port,
                secondary=secondary.port,
                connections=options.connections,
            )
            (directory / "campaigns.toml").write_text(configuration)
            figures = run_campaign(directory, options, primary, secondary)
    figures["baseline_mails_per_second"] = round(baseline, 1)
    figures["ratio"] = round(figures["mails_per_second"] / baseline, 2)
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


@contextlib.contextmanager
def database(options: argparse.Namespace) -> Iterator[str]:
    """The URL of a fresh PostgreSQL database; empty for SQLite."""
    if not options.postgresql:
        yield ""
        return
    from tests.postgres import postgres_server  # noqa: PLC0415 - only where it is asked for

    with postgres_server() as server:
        yield server.url(server.create_database())


def baseline_rate(directory: Path, options: argparse.Namespace) -> float:
    """Mails a second over plain aiosmtplib, reused connections, one process."""
    count = min(options.recipients, 5_000)
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


def run_campaign(
    directory: Path, options: argparse.Namespace, primary: SmtpServerProcess, secondary: SmtpServerProcess
) -> dict[str, object]:
    recipients = write_list(directory / "list.csv", options.recipients)
    config = directory / "campaigns.toml"
    environ = {**os.environ, "CAMPAIGNS_CONFIG": str(config)}
    command = [sys.executable, "-m", "campaigns", "up", "--processes", str(options.processes)]
    with (directory / "up.log").open("wb") as log:
        up = subprocess.Popen(
            command, env=environ, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    memory = Memory(up.pid)
    try:
        client = connect(load_settings(config, {}))
        client.upgrade_database()
        wait(lambda: len(client.ledger.live_workers(10)) >= 2 * options.processes + 1, 60)
        campaign = client.create_campaign(
            "bench", sender="News <news@example.com>", subject="Hi {{ name }}", text=TEXT
        )
        campaign.recipients.add_csv(directory / "list.csv")
        began = time.time()
        campaign.send()
        killed_at = follow(client, options, primary)
        seconds = time.time() - began
    finally:
        up.send_signal(signal.SIGTERM)
        up.wait(90)
        memory.stop()
    return judged(client, recipients, primary, secondary) | {
        "recipients": options.recipients,
        "mails_per_second": round(options.recipients / seconds, 1),
        "failover_seconds": failover_seconds(secondary, killed_at),
        "peak_memory_megabytes": memory.peaks(),
    }


def write_list(path: Path, count: int) -> list[str]:
    emails = [f"r{number}@d{number % 50}.example.com" for number in range(count)]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["email", "name"])
        writer.writerows((email, f"Ada {number}") for number, email in enumerate(emails))
    return emails


def follow(client: Client, options: argparse.Namespace, primary: SmtpServerProcess) -> float | None:
    killed_at: float | None = None
    while (counts := client.ledger.counts("bench")).status is not Status.FINISHED:
        if options.kill and killed_at is None and counts.states[State.SENT] >= 0.4 * options.recipients:
            primary.kill()
            killed_at = time.time()
        time.sleep(0.2)
    return killed_at


def judged(
    client: Client, recipients: list[str], primary: SmtpServerProcess, secondary: SmtpServerProcess
) -> dict[str, object]:
    counts = client.ledger.counts("bench")
    records = {"primary": primary.records(), "secondary": secondary.records()}
    times = Counter(mail.recipient for mails in records.values() for mail in mails)
    states = {delivery.email: delivery.state for delivery in client.ledger.deliveries("bench")}
    final = (State.SENT, State.FAILED, State.SUPPRESSED, State.CANCELLED, State.UNCERTAIN)
    return {
        "accepted": {name: len(mails) for name, mails in records.items()},
        "sent": counts.states[State.SENT],
        "failed": counts.states[State.FAILED],
        "uncertain": counts.states[State.UNCERTAIN],
        "rerouted": sum(server.rerouted for server in counts.servers.values()),
        "lost": len(recipients) - sum(counts.states[state] for state in final),
        "sent_but_not_accepted": sum(
            1 for email, state in states.items() if state is State.SENT and not times[email]
        ),
        "duplicates": sum(1 for count in times.values() if count > 1),
    }


def failover_seconds(secondary: SmtpServerProcess, killed_at: float | None) -> float | None:
    """To the first mail after the kill that the secondary took."""
    if killed_at is None:
        return None
    return round(min(mail.at for mail in secondary.records() if mail.at > killed_at) - killed_at, 3)


def wait(question: object, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not question():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise SystemExit("the workers did not start")
        time.sleep(0.1)


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
