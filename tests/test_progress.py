"""Bars come often on a terminal and seldom in a log, and both show the last state."""

import sys
import time

from pi0_jax import progress
from pi0_jax.progress import clock, progress_bar


def run(bar, updates: int = 20, seconds: float = 0.3) -> None:
    with bar:
        for _ in range(updates):
            time.sleep(seconds / updates)
            bar.update()


def test_in_a_log_only_the_first_and_the_last_state_of_a_short_loop(capsys):
    run(progress_bar(total=20, desc="steps"))
    text = capsys.readouterr().err
    first, last = text.splitlines()
    assert "0/20" in first and "20/20" in last
    assert "\r" not in text


def test_in_a_log_ten_seconds_lie_between_two_states(capsys, monkeypatch):
    """Here the ten seconds are a tenth of one."""
    assert progress._LOG_S == 10.0
    monkeypatch.setattr(progress, "_LOG_S", 0.1)
    start = time.monotonic()
    run(progress_bar(total=200, desc="steps"), updates=200, seconds=0.5)
    most = (time.monotonic() - start) / 0.1 + 3
    states = capsys.readouterr().err.splitlines()
    assert 4 <= len(states) <= most and "200/200" in states[-1]


def test_the_last_state_is_shown_of_what_ends_early(capsys):
    for step in progress_bar(range(100), desc="steps"):
        if step == 3:
            break
    assert "3/100" in capsys.readouterr().err.splitlines()[-1]


def test_a_terminal_is_drawn_over(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress, "_TERMINAL_S", 0.1)
    run(progress_bar(total=20, desc="steps"))
    text = capsys.readouterr().err
    assert text.count("\r") >= 3 and text.count("\n") == 1 and "20/20" in text


def test_a_clock_is_silent_where_nothing_takes_long(capsys):
    with clock("model: compiling"):
        pass
    assert capsys.readouterr().err == ""


def test_a_clock_counts_until_the_block_ends(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_TERMINAL_S", 0.05)
    monkeypatch.setattr(progress, "_LOG_S", 0.2)
    with clock("model: compiling"):
        time.sleep(0.6)
    ended = capsys.readouterr().err
    assert 2 <= len(ended.splitlines()) <= 4
    assert all(line.startswith("model: compiling, 00:0") for line in ended.splitlines())
    time.sleep(0.3)
    assert capsys.readouterr().err == ""


def test_a_clock_leaves_a_terminal_clean(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress, "_TERMINAL_S", 0.05)
    with clock("model: compiling"):
        time.sleep(0.3)
    text = capsys.readouterr().err
    *_, erased, after = text.split("\r")
    assert erased.strip() == after == "" and "\n" not in text
