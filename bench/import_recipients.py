"""How fast recipients are imported, and in how much memory.

    python -m bench.import_recipients [--rows 200000] [--postgresql]

Imports lists of N and of 2 N rows, each in a process and a database of its own, and prints rows per second
and peak memory. The exit status is 1 if N rows took a minute, or if the peak grew by more than a tenth.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from campaigns.client import Client
from campaigns.settings import Server, Settings

MOST_SECONDS = 60.0
MOST_GROWTH = 1.10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--postgresql", action="store_true")
    parser.add_argument("--child", nargs=2, metavar=("DATABASE", "CSV"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(run_import(*options.child)))
        return 0
    with databases(postgresql=options.postgresql) as urls:
        once, twice = (measured(next(urls), rows) for rows in (options.rows, 2 * options.rows))
    growth = twice["peak_megabytes"] / once["peak_megabytes"]
    print(json.dumps({"once": once, "twice": twice, "growth": round(growth, 3)}, indent=2))
    return 0 if once["seconds"] < MOST_SECONDS and growth <= MOST_GROWTH else 1


def measured(url: str, rows: int) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
        file.write("email,first_name,city\n")
        file.writelines(f"user.{n}@host{n % 500}.example.com,Name {n},City {n % 77}\n" for n in range(rows))
        file.flush()
        command = [sys.executable, "-m", "bench.import_recipients", "--child", url, file.name]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, Any] = json.loads(told)
    return found


def run_import(url: str, path: str) -> dict[str, Any]:
    servers = (Server(name="primary", host="127.0.0.1", port=1, tls="none"),)
    with Client(Settings(directory=Path.cwd(), database=url, servers=servers)) as client:
        client.upgrade_database()
        campaign = client.create_campaign(
            "import", sender="news@example.com", subject="Hi {{ first_name }}", text="How is {{ city }}?"
        )
        began = time.monotonic()
        report = campaign.recipients.add_csv(path)
        seconds = time.monotonic() - began
    return {
        "rows": report.added,
        "seconds": round(seconds, 1),
        "rows_per_second": round(report.added / seconds),
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


@contextlib.contextmanager
def databases(*, postgresql: bool) -> Iterator[Iterator[str]]:
    """Addresses of fresh databases."""
    if postgresql:
        from tests.postgres import postgres_server  # noqa: PLC0415 - only the development checkout has it

        with postgres_server() as server:
            yield (server.url(server.create_database()) for _ in range(2))
        return
    with tempfile.TemporaryDirectory() as directory:
        yield (f"sqlite:///{directory}/{number}.db" for number in range(2))


if __name__ == "__main__":
    sys.exit(main())
