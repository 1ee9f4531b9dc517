"""What the property tests draw from, and the one profile that makes them say the same every time."""

from hypothesis import settings
from hypothesis import strategies as st

from campaigns.reply import Fault, Phase, Reply, SmtpResult, Stop

__all__ = ["ANY_TEXT", "REPEATABLE", "replies", "results"]

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None, max_examples=200)
REPEATABLE = settings(settings.get_profile("repeatable"))

ANY_TEXT = st.text(st.characters(), max_size=200) | st.text("abc @<>\"'\\.%40\x00\ud800\r\n5124", max_size=80)
WORDS = st.sampled_from(
    [
        "user unknown",
        "greylisted, try again in 300 seconds",
        "blocked using spamhaus",
        "too many recipients",
        "daily quota exceeded",
        "relay denied",
        "timeout",
        "",
    ]
)


def replies() -> st.SearchStrategy[Reply]:
    enhanced = st.builds(
        "{}.{}.{} ".format, st.integers(2, 6), st.integers(0, 9), st.integers(0, 700)
    ) | st.just("")
    text = st.builds("{}{}{}".format, enhanced, WORDS, ANY_TEXT)
    codes = st.integers(200, 599) | st.integers(-1, 9999)
    return st.builds(Reply.parse, codes, text)


def results() -> st.SearchStrategy[SmtpResult]:
    return st.builds(
        SmtpResult,
        phase=st.sampled_from(Phase) | st.just(Phase.DOT),
        reply=st.none() | replies(),
        fault=st.none() | st.sampled_from(Fault),
        dot_sent=st.booleans(),
        stop=st.none() | st.sampled_from(Stop),
    )
