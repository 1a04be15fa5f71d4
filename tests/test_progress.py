"""How far a replay has come, as a person at a terminal sees it, and as a log has it."""

from __future__ import annotations

import io

from streamer.progress import LOG_SECONDS, TERMINAL_SECONDS, Progress
from streamer.rows import Row


class Screen(io.StringIO):
    """What is written to a terminal."""

    def isatty(self) -> bool:
        return True


def rows(n: int) -> list[Row]:
    return [Row("0", 0.0, ["a"], [1.0])] * n


def followed(out: io.StringIO, step_seconds: float, n: int = 5_000) -> Progress:
    """Half of the rows have passed, in steps of a thousand."""
    now = 0.0
    progress = Progress(out, lambda: now)
    done = 0
    progress.measure(lambda: done / (2 * n))
    for _ in progress.follow(rows(n)):
        done += 1
        if done % 1_000 == 999:
            now += step_seconds
    return progress


def test_a_terminal_has_one_line_that_renews_itself() -> None:
    """Share, rate and what is left; gone before anything else is said."""
    out = Screen()
    progress = followed(out, TERMINAL_SECONDS)
    assert out.getvalue().split("\r")[-1] == "50%: 5000 readings, 2000 a second, about 3 s left\x1b[K"
    progress.say("alarm")
    assert out.getvalue().endswith("left\x1b[K\r\x1b[Kalarm\n")
    progress.end()
    assert out.getvalue().endswith("alarm\n")


def test_the_share_of_a_known_number_of_readings() -> None:
    """Where all has been read before anything is scored."""
    out, now = Screen(), 0.0
    progress = Progress(out, lambda: now)
    progress.expect(8_000)
    for k, _ in enumerate(progress.follow(rows(2_000))):
        now = 4.0 * (k > 500)
    assert out.getvalue().startswith("\r12%: 1000 readings, 250 a second, about 28 s left")


def test_a_log_has_a_line_now_and_then() -> None:
    """None for what is short."""
    out = io.StringIO()
    followed(out, TERMINAL_SECONDS)
    assert out.getvalue() == ""
    followed(out, LOG_SECONDS).end()
    lines = out.getvalue().splitlines()
    assert len(lines) == 5
    assert all("\r" not in line and line.endswith("s left") for line in lines)
