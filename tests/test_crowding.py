"""Other processes on the same cores are noticed; those elsewhere are not."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from API import crowding
from API.crowding import Crowding

# Seconds waited in a second of computing, or of sleeping, beside a process that is always busy on the same core.
BESIDE = """
import os, subprocess, sys, time
from API.crowding import waited
core = min(os.sched_getaffinity(0))
os.sched_setaffinity(0, {core})
other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
try:
    time.sleep(0.2)
    began, before = time.monotonic(), waited()
    while time.monotonic() < began + 1:
        if sys.argv[1] == "sleep":
            time.sleep(1)
    print((waited() - before) / (time.monotonic() - began))
finally:
    other.kill()
"""


@pytest.mark.skipif(not any(crowding.TASKS.glob("*/schedstat")), reason="this system does not tell")
@pytest.mark.parametrize(("doing", "least", "most"), [("compute", 0.2, 1.0), ("sleep", 0.0, 0.1)])
def test_waiting_for_a_core_counts_and_sleeping_does_not(doing, least, most):
    command = [sys.executable, "-c", BESIDE, doing]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert least <= float(done.stdout) <= most


@pytest.fixture
def clock(monkeypatch):
    """A clock and a count of waiting, to be set."""
    now = {"time": 0.0, "waited": 0.0}
    monkeypatch.setattr(crowding.time, "monotonic", lambda: now["time"])
    monkeypatch.setattr(crowding, "waited", lambda: now["waited"])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    return now


def test_a_run_that_waits_for_its_cores_says_so_once(clock, capsys):
    crowd = Crowding(torch.device("cpu"))
    for seconds, waits, warns in ((5, 5, False), (30, 5, False), (60, 20, True), (90, 50, False)):
        clock.update(time=seconds, waited=waits)
        crowd.look()
        said = capsys.readouterr().out
        assert ("OMP_NUM_THREADS=3" in said) == warns
        assert ("wait for, 50% of the time" in said) == warns


def test_nothing_is_said_of_one_thread_or_a_gpu(clock, capsys, monkeypatch):
    on_gpu, on_cpu = Crowding(torch.device("cuda")), Crowding(torch.device("cpu"))
    clock.update(time=100, waited=100)
    on_gpu.look()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    on_cpu.look()
    assert capsys.readouterr().out == ""
