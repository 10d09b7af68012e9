"""A run that is stopped or killed goes on to the same bits."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY_FLAGS
from test_core import same

import main
from API import UserError
from API.datasets import digits
from API.evaluation import figures, test_set
from API.run.checkpoint import SaveEvery, last_checkpoint, load_checkpoint, previous, save_checkpoint
from API.run.interrupt import Interrupted, StopSignals
from API.run.recorder import Recorder

FLAGS = [*TINY_FLAGS, "--batch_size", "4", "--epochs", "2", "--precision", "fp32", "--device", "cpu"]
REPO = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(digits, "SEQUENCES", {"train": 20, "val": 4, "test": 4})
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: path.touch())
    return tmp_path / "results"


def assert_same_runs(folder: Path, one: str, two: str) -> None:
    """Equal checkpoints, to the bit, and equal records of every epoch once."""
    a, b = (load_checkpoint(folder / name / "checkpoints/last.pth") for name in (one, two))
    for key in ("model", "optimizer", "scheduler", "random", "epoch", "step", "total", "best"):
        assert same(a[key], b[key]), key
    records = [[json.loads(s) for s in (folder / n / "metrics.jsonl").read_text().splitlines()] for n in (one, two)]
    timing = ("seconds", "sequences_per_second", "waiting")
    for record in (*records[0], *records[1]):
        for name in timing:
            record.pop(name)
    assert records[0] == records[1]
    assert [record["epoch"] for record in records[0]] == [1, 2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_stops_after_the_step_and_resuming_gives_the_same_bits(folder, monkeypatch, number, request):
    before = signal.signal(number, signal.SIG_DFL)  # under nohup SIGHUP is ignored
    request.addfinalizer(lambda: signal.signal(number, before))
    main.run([*FLAGS, "--ex_name", "whole"])
    step, steps = torch.optim.Adam.step, []

    def asked_to_stop(self, *args, **kwargs):
        steps.append(1)
        if len(steps) in (3, 6):  # in the middle of the first epoch, and at the start of the second
            os.kill(os.getpid(), number)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", asked_to_stop)
    for stop in ("epoch 1, step 3", "epoch 2, step 1"):
        with pytest.raises(Interrupted, match=stop):
            main.run([*FLAGS, "--ex_name", "parts", "--resume", "auto"])
    main.run([*FLAGS, "--ex_name", "parts", "--resume", "auto"])
    assert len(steps) == 10
    assert_same_runs(folder, "whole", "parts")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_after_an_epoch_without_validation_loses_nothing_of_it(folder, monkeypatch):
    flags = [*FLAGS, "--log_step", "2"]
    main.run([*flags, "--ex_name", "whole"])
    recorded = Recorder.epoch

    def asked_to_stop(recorder, record):
        recorded(recorder, record)
        if record["epoch"] == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Recorder, "epoch", asked_to_stop)
    with pytest.raises(Interrupted, match="after epoch 1"):
        main.run([*flags, "--ex_name", "parts"])
    assert load_checkpoint(folder / "parts/checkpoints/last.pth")["epoch"] == 1
    main.run([*flags, "--ex_name", "parts", "--resume"])
    assert_same_runs(folder, "whole", "parts")


def test_a_second_ctrl_c_stops_at_once():
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_run_under_nohup_goes_on_when_the_terminal_is_gone():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.asked
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


START = """
import sys; sys.path[:0] = [{repo!r}]
from API.datasets import digits; digits.SEQUENCES = {{"train": 20, "val": 4, "test": 4}}
sys.argv = ["main.py", *sys.argv[1:]]
import main
from API.run.output import keep_printing
keep_printing()
sys.exit(main.main())
"""


def test_a_closed_pipe_stops_the_run_with_a_checkpoint(folder):
    command = [sys.executable, "-c", START.format(repo=str(REPO)), *FLAGS, "--epochs", "500", "--ex_name", "piped"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder.parent)
    assert run.stdout.readline()
    run.stdout.close()  # as `| head -1` does
    said = run.stderr.read()
    assert run.wait(120) == 75, said
    assert "go on with --resume" in said
    assert "Traceback" not in said
    assert "BrokenPipe" not in said
    assert last_checkpoint(folder / "piped") is not None
    assert "; go on with --resume" in (folder / "piped/log.txt").read_text().splitlines()[-1]


def test_a_signal_to_every_process_of_a_run_stops_it_with_a_checkpoint(folder):
    flags = [*FLAGS, "--num_workers", "2", "--epochs", "500", "--log_step", "500", "--ex_name", "all"]
    command = [sys.executable, "-c", START.format(repo=str(REPO)), *flags]
    pipe = subprocess.PIPE
    run = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=folder.parent, start_new_session=True)
    try:
        while not run.stdout.readline().startswith("epoch 1/"):
            assert run.poll() is None, run.stderr.read()
        os.killpg(run.pid, signal.SIGTERM)
        printed, errors = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 75, errors
    assert printed.count("stopping after this step") == 1
    assert "go on with --resume" in errors
    assert last_checkpoint(folder / "all") is not None


def test_a_signal_in_the_last_test_stops_it_and_resuming_tests(folder, monkeypatch):
    fingerprints = test_set.fingerprints

    def asked_to_stop(frames):
        os.kill(os.getpid(), signal.SIGUSR1)
        return fingerprints(frames)

    monkeypatch.setattr(test_set, "fingerprints", asked_to_stop)
    with pytest.raises(Interrupted, match="stopped in the test; go on with --resume"):
        main.run([*FLAGS, "--ex_name", "tested"])
    monkeypatch.setattr(test_set, "fingerprints", fingerprints)
    assert not (folder / "tested/test.json").exists()
    main.run([*FLAGS, "--ex_name", "tested", "--resume"])
    assert (folder / "tested/test.json").exists()


def test_a_long_temporary_folder_does_not_keep_workers_from_handing_over_batches(folder):
    place = folder.parent / ("t" * 90)
    place.mkdir()
    flags = [*FLAGS, "--epochs", "1", "--num_workers", "1"]
    command = [sys.executable, "-c", START.format(repo=str(REPO)), *flags]
    environment = os.environ | {"TMPDIR": str(place)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder.parent, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith(f"warning: TMPDIR={place} takes no socket")]
    assert len(told) == 1


def test_a_bug_ends_a_run_whose_workers_ignore_signals(folder):
    bug = "import torch\ndef step(*_, **__): raise ValueError('a bug')\ntorch.optim.Adam.step = step\n"
    command = [sys.executable, "-c", bug + START.format(repo=str(REPO)), *FLAGS, "--num_workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder.parent, timeout=120)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ValueError: a bug"


def test_stops_and_resumes_are_in_the_log_with_their_times(folder, monkeypatch):
    step, steps = torch.optim.Adam.step, []

    def asked_to_stop(self, *args, **kwargs):
        steps.append(1)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", asked_to_stop)
    with pytest.raises(Interrupted):
        main.run(FLAGS)
    main.run([*FLAGS, "--resume"])
    log = [line[21:] for line in (folder / "digits/log.txt").read_text().splitlines()]
    stopped = log.index("stopped in epoch 1, step 3; go on with --resume")
    assert log.index("resumed after epoch 0 and 3 steps of the next one") == stopped + 1


@pytest.mark.parametrize("how", ["yes", "auto"])
def test_resume_and_overwrite_together_are_refused_and_nothing_is_lost(folder, how):
    main.run(FLAGS)
    before = (folder / "digits/checkpoints/last.pth").read_bytes()
    with pytest.raises(UserError, match=r"--resume .* --overwrite .* one of them"):
        main.run([*FLAGS, "--resume", how, "--overwrite"])
    assert (folder / "digits/checkpoints/last.pth").read_bytes() == before


def test_a_second_run_of_a_name_is_refused_before_anything_is_loaded(folder, monkeypatch):
    main.run(FLAGS)
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys, time; from pathlib import Path; from API.run.lock import hold;"
         " hold(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)", folder / "digits"],
        cwd=REPO, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert "held" in holder.stdout.readline()
        monkeypatch.setattr("core.build_loaders", None)
        for flags in ([], ["--resume"], ["--resume", "auto"], ["--overwrite"]):
            with pytest.raises(UserError, match=f"process {holder.pid} .* trains this run already"):
                main.run([*FLAGS, *flags])
    finally:
        holder.kill()
        holder.wait()


def test_a_run_that_is_there_is_refused_before_anything_is_loaded(folder, monkeypatch):
    main.run(FLAGS)
    monkeypatch.setattr("core.build_loaders", None)
    with pytest.raises(UserError, match="holds a run already"):
        main.run(FLAGS)


def test_a_stopped_process_says_so_in_its_exit_code(folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py"])
    monkeypatch.setattr(main, "run", lambda argv: (_ for _ in ()).throw(Interrupted("stopped; go on with --resume")))
    assert main.main() == 75


def test_a_run_killed_at_eight_random_instants_ends_with_the_same_bits(tmp_path):
    script, output = REPO / "benchmarks/faults.py", tmp_path / "faults.json"
    command = [sys.executable, str(script), "--kills", "8", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(output.read_text())["result"]
    assert result["kills"] == 8 == sum(result["while"].values())
    assert result["runs"] >= 1
    assert result["different"] == []


def test_a_damaged_checkpoint_falls_back_to_the_one_before_with_one_warning(folder, tmp_path, capsys):
    path = tmp_path / "checkpoints/last.pth"
    path.parent.mkdir()
    assert last_checkpoint(tmp_path) is None
    for epoch in (1, 2):
        save_checkpoint(path, {"epoch": epoch, "w": torch.zeros(1000)})
    assert last_checkpoint(tmp_path)[0] == path
    path.write_bytes(path.read_bytes()[:-700])
    assert last_checkpoint(tmp_path)[0] == previous(path)
    printed = capsys.readouterr().out
    assert printed.count("warning") == len(printed.splitlines()) == 1
    assert load_checkpoint(previous(path))["epoch"] == 1
    previous(path).write_bytes(b"")
    with pytest.raises(ValueError, match="previous"):
        last_checkpoint(tmp_path)


def test_saving_is_due_every_so_many_steps_or_minutes(monkeypatch):
    assert [step for step in range(1, 11) if SaveEvery("4")(step)] == [4, 8]
    assert not any(SaveEvery(None)(step) for step in range(1, 11))
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    due, saved = SaveEvery("1.5m"), []
    for step in range(10):
        now[0] = step * 30.0
        if due(step):
            saved.append(step)
    assert saved == [3, 6, 9]


@pytest.mark.parametrize("value", ["0", "-3", "x", "0m", "3h", "nanm"])
def test_save_every_takes_steps_or_minutes_only(value):
    with pytest.raises(SystemExit):
        main.parse(["--save_every", value])
