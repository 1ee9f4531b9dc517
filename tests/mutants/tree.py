"""Copies of the checkout in which a guard can be taken out without anybody else noticing."""

import compileall
import contextlib
import importlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.mutants.table import Mutant, mutated

__all__ = ["ROOT", "Tree"]

ROOT = Path(__file__).resolve().parents[2]
OURS = ("campaigns", "workers", "tests")

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.mutants.warm"])


class Tree:
    """The checkout as it is now, less what git ignores, in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __repr__(self) -> str:
        return f"<Tree {self.directory}>"

    @classmethod
    def of_the_checkout(cls, directory: Path) -> "Tree":
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, directory / name)
        # where the wheel has them: otherwise those of the checkout would be imported
        (directory / "campaigns" / "migrations").symlink_to(Path("..", "migrations"))
        for package in (*OURS, "migrations"):
            compileall.compile_dir(directory / package, quiet=2)
        return cls(directory)

    def without(self, mutant: Mutant, directory: Path) -> "Tree":
        """Another one, of links to these files, without that guard. Raises ValueError if there is none."""
        source = (self.directory / mutant.file).read_text(encoding="utf-8")
        changed = mutated(source, mutant)
        shutil.copytree(self.directory, directory, symlinks=True, copy_function=os.link)
        file = directory / mutant.file
        for compiled in file.parent.glob(f"__pycache__/{file.stem}.*"):
            compiled.unlink()  # it may be as old, to the second, and as long
        file.unlink()
        file.write_text(changed, encoding="utf-8")
        return Tree(directory)

    def remove(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)

    def check(self) -> None:
        """Raises RuntimeError unless what the tests start as processes imports this tree's code, too."""
        code = "import campaigns.migrations as m, workers; print(workers.__file__, *m.__path__)"
        environment = {**os.environ, "PYTHONPATH": str(self.directory)}
        command = [sys.executable, "-c", code]
        found = subprocess.check_output(command, cwd="/", env=environment, text=True).split()
        if len(found) != 2 or not all(path.startswith(f"{self.directory}/") for path in found):
            raise RuntimeError(f"the tests would not use the copy but {' and '.join(found) or 'nothing'}")

    def pytest(self, arguments: Sequence[str], *, seconds: float) -> tuple[int, str]:
        """pytest's status and output, in a process of its own. Raises TimeoutError."""
        with tempfile.NamedTemporaryFile("r", errors="replace") as output:
            told = (str(self.directory), [*arguments], output.name)
            process = _processes.Process(target=_run_pytest, args=told)
            process.start()
            process.join(seconds)
            if process.exitcode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid or 0, signal.SIGKILL)
                process.join()
                raise TimeoutError(f"not within {seconds:.0f} s\n{output.read()}")
            return process.exitcode, output.read()


def _run_pytest(directory: str, arguments: list[str], output: str) -> None:
    """In a process that has imported nothing of the project but this."""
    os.setsid()
    descriptor = os.open(output, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.chdir(directory)
    os.environ["PYTHONPATH"] = directory  # for the processes that the tests start
    sys.path[:] = [directory, *(path for path in sys.path if path and Path(path).resolve() != ROOT)]
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]
    importlib.invalidate_caches()
    if not str(importlib.import_module("campaigns").__file__).startswith(f"{directory}/"):
        raise RuntimeError("the tests would not use the copy")
    import pytest  # noqa: PLC0415 - not in those that only compare texts

    status = pytest.main(arguments)
    sys.stdout.flush()
    os._exit(int(status))
