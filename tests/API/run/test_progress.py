"""What a user is told of the time that is left."""

import time

import pytest

from API.run.progress import Progress, follow


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set, by clock[0]."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_the_time_left_after_resume_counts_from_the_resumed_step(clock, capsys):
    progress = Progress(1000, "epoch 3/9", first=900)
    clock[0] += 50
    progress.show(910, "loss 2.0", sequences=160)  # 10 steps in 50 s, 90 are left
    assert capsys.readouterr().out == "epoch 3/9  step 910/1000  loss 2.0  3.2 sequences/s  450 s left\n"


def test_without_a_terminal_a_line_comes_every_half_minute(clock, capsys):
    for _ in follow(range(20), "decoding"):
        clock[0] += 10
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "decoding  step 3/20  170 s left"
    assert len(lines) == 6


def test_a_process_that_leaves_printing_to_another_says_nothing(clock, capsys):
    for _ in follow(range(20), "decoding", shown=False):
        clock[0] += 100
    assert capsys.readouterr().out == ""


def test_a_bar_starts_where_the_run_was_stopped(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    progress = Progress(1000, "epoch", first=900)
    assert progress.bar.n == 900
    progress.show(950, "loss 1.0")
    assert progress.bar.n == 950
    progress.close()


def test_nothing_is_said_of_work_that_is_quick(capsys):
    assert list(follow([1, 2, 3], "decoding")) == [1, 2, 3]
    assert capsys.readouterr().out == ""
