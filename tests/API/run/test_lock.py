"""One training process a run folder."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from API import UserError
from API.run import lock
from API.run.recorder import Recorder

REPO = Path(__file__).parents[3]
HOLD = r"""
import os, sys, time
from pathlib import Path
from API.run.lock import hold
hold(Path(sys.argv[1]))
if len(sys.argv) > 2 and os.fork() == 0:  # as a process that loads data does
    os.write(1, b"%d\n" % os.getpid())
    time.sleep(60)
os.write(1, b"held\n")
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that trains in tmp_path."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], cwd=REPO, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_in_one_line_that_names_the_first(tmp_path, holder):
    for overwrite in (False, True):
        with pytest.raises(UserError, match=f"process {holder.pid} on .* trains this run already") as error:
            Recorder(tmp_path, resume=not overwrite, overwrite=overwrite)
        assert "\n" not in str(error.value)
        assert "--ex_name" in str(error.value)
    Recorder(tmp_path, enter=True).log("a test may write beside it")


def test_after_a_kill_nothing_has_to_be_cleaned_up(tmp_path, holder):
    holder.kill()
    holder.wait()
    assert (tmp_path / ".lock").exists()
    recorder = Recorder(tmp_path)
    assert f"process {os.getpid()} on" in (tmp_path / ".lock").read_text()
    recorder.close()


def test_what_a_killed_process_leaves_running_does_not_hold_the_lock(tmp_path):
    command = [sys.executable, "-c", HOLD, tmp_path, "fork"]
    process = subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, text=True)
    said = {process.stdout.readline().strip() for _ in range(2)}
    process.kill()
    process.wait()
    (child,) = said - {"held"}
    os.kill(int(child), 0)  # still there
    try:
        Recorder(tmp_path).close()
    finally:
        os.kill(int(child), signal.SIGKILL)


def test_the_same_process_may_enter_again_and_lets_go_when_it_is_done(tmp_path):
    Recorder(tmp_path)
    recorder = Recorder(tmp_path)
    command = [
        sys.executable,
        "-c",
        "import sys, pathlib; from API.run.lock import hold; hold(pathlib.Path(sys.argv[1]))",
    ]
    assert b"trains this run already" in subprocess.run([*command, tmp_path], cwd=REPO, capture_output=True).stderr
    recorder.close()
    assert not (tmp_path / ".lock").exists()
    assert subprocess.run([*command, tmp_path], cwd=REPO, capture_output=True).returncode == 0


def test_a_file_system_without_locks_is_told_once_and_trained_on(tmp_path, monkeypatch, capsys):
    def refuse(_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock, "_lock", refuse)
    Recorder(tmp_path)
    recorder = Recorder(tmp_path)
    assert capsys.readouterr().out.count("cannot be locked (No locks available)") == 1
    recorder.close()


def test_a_lock_that_was_removed_on_the_way_is_taken_anew(tmp_path, monkeypatch):
    """Otherwise two processes could hold it: one the removed file, one the new file of the same name."""
    take, calls = lock._lock, []

    def take_a_removed_one_first(file):
        take(file)
        calls.append(file)
        if len(calls) == 1:
            (tmp_path / ".lock").unlink()

    monkeypatch.setattr(lock, "_lock", take_a_removed_one_first)
    lock.hold(tmp_path)
    assert len(calls) == 2
    assert os.path.samestat(os.fstat(calls[1].fileno()), (tmp_path / ".lock").stat())
    lock.let_go(tmp_path)
