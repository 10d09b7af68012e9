"""Printing never ends a run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[3]
START = "import sys; from API.run.output import keep_printing, reader_gone; keep_printing(); "


def run(script: str, *options: str, **kwargs) -> subprocess.CompletedProcess:
    command = [sys.executable, *options, "-c", START + script]
    return subprocess.run(command, cwd=REPO, timeout=60, **{"capture_output": True, **kwargs})


@pytest.mark.parametrize(("encoding", "expected"), [("ascii", b"? ? caf?"), ("latin-1", b"? ? caf\xe9")])
def test_what_a_terminal_cannot_show_becomes_a_question_mark(encoding, expected):
    env = os.environ | {"PYTHONIOENCODING": encoding}
    done = run(r"print('\u2026 \u2192 caf\xe9'); print('\u2026 \u2192 caf\xe9', file=sys.stderr)", env=env)
    assert done.returncode == 0
    assert done.stdout.strip() == done.stderr.strip() == expected


def test_a_name_that_is_no_text_can_be_printed():
    done = run(r"print('clip \udcff.avi')", env=os.environ | {"PYTHONIOENCODING": "utf-8"})
    assert (done.returncode, done.stdout) == (0, b"clip ?.avi\n")


@pytest.mark.parametrize("options", [(), ("-u",)])
def test_a_reader_that_went_away_is_noticed_and_nothing_fails(options):
    read, write = os.pipe()
    os.close(read)
    script = "print(reader_gone()); sys.stdout.flush(); print('x' * 100_000, flush=True); sys.exit(3 + reader_gone())"
    done = run(script, *options, capture_output=False, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert done.returncode == 4
    assert done.stderr == b""


def test_a_reader_of_errors_that_went_away_is_no_reason_to_stop():
    read, write = os.pipe()
    os.close(read)
    script = "print('x', file=sys.stderr, flush=True); print(reader_gone())"
    done = run(script, capture_output=False, stdout=subprocess.PIPE, stderr=write)
    os.close(write)
    assert (done.returncode, done.stdout) == (0, b"False\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_output_to_a_full_disk_is_lost_and_no_more():
    with Path("/dev/full").open("w") as full:
        script = "print('x' * 100_000, flush=True); sys.exit(5 + reader_gone())"
        done = run(script, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (5, b"")


def test_closed_streams_can_be_printed_to():
    command = [
        sys.executable,
        "-c",
        START + "print(1, flush=True); sys.stderr.write('2'); sys.exit(sys.stdout.isatty())",
    ]
    done = subprocess.run(["sh", "-c", '"$@" >&- 2>&-', "sh", *command], cwd=REPO, timeout=60)
    assert done.returncode == 0


def test_everything_arrives_in_order_where_somebody_reads():
    done = run("print('a'); print('b', file=sys.stderr); print('c', end='')")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"a\nc", b"b\n")
