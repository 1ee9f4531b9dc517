"""Lines of the child processes, made short and told apart."""

import re
import time

__all__ = ["log_line"]

_CELERY = re.compile(r"^\[\S+ (\d\d:\d\d:\d\d)[,.]\d+: (\w+)/[^\]]*\] ?(.*)$")
_TORNADO = re.compile(r"^\[([A-Z]) \d+ (\d\d:\d\d:\d\d) [^\]]*\] ?(.*)$")
_COMMON = frozenset({"INFO", "I", ""})


def log_line(name: str, line: str, *, now: float, width: int) -> str:
    """`12:00:01 primary-1  WARNING what it said`: the time, the process, and the level where it matters."""
    for pattern, order in ((_CELERY, (1, 2, 3)), (_TORNADO, (2, 1, 3))):
        if match := pattern.match(line):
            at, level, text = (match.group(group) for group in order)
            break
    else:
        at, level, text = time.strftime("%H:%M:%S", time.localtime(now)), "", line
    told = "" if level in _COMMON else f"{level} "
    return f"{at} {name.ljust(width)}  {told}{text}".rstrip()
