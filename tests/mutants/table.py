"""The guards, and what must notice when one of them is gone."""

import ast
import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Mutant", "mistakes", "mutated", "read_mutants"]

TABLES = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """In `file` the text `old`, which is there once, becomes `new`; one of `tests` must fail then.

    `guard` says in words what is taken out. `tests` are pytest's names without the leading `tests/`.
    """

    name: str
    guard: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def read_mutants(directory: Path = TABLES) -> list[Mutant]:
    """All of them, in the order of the files' names and of the lines in them."""
    return [mutant for path in sorted(directory.glob("*.toml")) for mutant in _of_file(path)]


def _of_file(path: Path) -> Iterator[Mutant]:
    for row in tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]:
        yield Mutant(**{**row, "tests": tuple(row["tests"])})


def mutated(source: str, mutant: Mutant) -> str:
    """The file's text without the guard. Raises ValueError if the guard is not there, or there twice."""
    found = source.count(mutant.old)
    if found != 1:
        raise ValueError(f"{mutant.name}: its text is {found} times in {mutant.file}, not once")
    changed = source.replace(mutant.old, mutant.new)
    if changed == source:
        raise ValueError(f"{mutant.name}: it changes nothing")
    if mutant.file.endswith(".py"):
        try:
            ast.parse(changed)
        except SyntaxError as error:
            raise ValueError(f"{mutant.name}: what it makes is no Python: {error}") from error
    return changed


def mistakes(mutants: Sequence[Mutant], root: Path) -> list[str]:
    """What is wrong with the table as the tree stands now, a line each; nothing runs."""
    names = [mutant.name for mutant in mutants]
    found = [f"{name}: there are two of this name" for name in sorted(set(names)) if names.count(name) > 1]
    for mutant in mutants:
        try:
            mutated((root / mutant.file).read_text(encoding="utf-8"), mutant)
        except (ValueError, OSError) as error:
            found.append(str(error))
        if not mutant.tests:
            found.append(f"{mutant.name}: no test is named")
        found += [
            f"{mutant.name}: there is no test {test}" for test in mutant.tests if not _is_there(test, root)
        ]
    return found


def _is_there(test: str, root: Path) -> bool:
    file, *inner = re.sub(r"\[.*", "", test).split("::")
    path = root / "tests" / file
    return path.is_file() and (not inner or f"def {inner[-1]}(" in path.read_text(encoding="utf-8"))
