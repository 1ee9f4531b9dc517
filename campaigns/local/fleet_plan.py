"""Which processes `campaigns up` runs, and how each is started (pure)."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from campaigns.local.supervisor import Child
from campaigns.settings import Settings

__all__ = ["FleetPlan"]

# Celery's seven lines about root are for pickled tasks; ours are JSON.
_QUIET_ROOT = "ignore:You're running the worker with superuser"
_QUIET_WORKER = ("--without-gossip", "--without-mingle")


@dataclass(frozen=True, kw_only=True)
class FleetPlan:
    """`processes` workers for each server's queue, one for the control tasks, and Flower if it has a port."""

    settings: Settings
    processes: int = 1
    flower_port: int | None = None
    log_level: str = "WARNING"

    @property
    def environment(self) -> Mapping[str, str]:
        """What the children need to find the same configuration, wherever they are started."""
        file = self.settings.config_file
        config = {"CAMPAIGNS_CONFIG": str(file.absolute())} if file else {}
        return {"PYTHONWARNINGS": _QUIET_ROOT, **config}

    def workers(self) -> list[Child]:
        """A process serves one server's queue, so that a slow server cannot hold up another one's mail."""
        servers = [
            self._worker(f"{server.name}-{number}", f"smtp.{server.name}")
            for server in self.settings.servers
            for number in range(1, self.processes + 1)
        ]
        return [*servers, self._worker("control", "campaigns")]

    def flower(self) -> list[Child]:
        """Flower says itself that it listens on loopback alone, unless authentication is configured."""
        if self.flower_port is None:
            return []
        return [self._celery("flower", "flower", f"--port={self.flower_port}", "--logging=warning")]

    def _worker(self, name: str, queue: str) -> Child:
        options = ("-Q", queue, "-n", f"{name}@%h", "--loglevel", self.log_level, *_QUIET_WORKER)
        return self._celery(name, "worker", *options)

    def _celery(self, name: str, command: str, *options: str) -> Child:
        line: Sequence[str] = (
            sys.executable, "-m", "celery", "--quiet", "--no-color", "-A", "workers", command, *options
        )  # fmt: skip
        return Child(name=name, command=line, environment=self.environment)
