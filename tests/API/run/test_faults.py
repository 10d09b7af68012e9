"""What goes wrong around a run, really caused: one clear line, exit code 2, and the last good checkpoint intact."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_FLAGS
from files import pictures, write_video
from full_disk import small_files
from test_core import same

import core
import main
from API.clips.cache import ClipCache
from API.datasets import digits
from API.evaluation import figures
from API.run.checkpoint import Saver, last_checkpoint, load_checkpoint, save_checkpoint

REPO = Path(__file__).parents[3]
FLAGS = [*TINY_FLAGS, "--batch_size", "4", "--val_batch_size", "2", "--precision", "fp32", "--device", "cpu"]


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """The command line in a folder of its own: (exit code, what it said on stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(digits, "SEQUENCES", {"train": 12, "val": 4, "test": 4})
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: path.touch())

    def run(*flags: str) -> tuple[int, str]:
        code = main.main(flags)
        return code, capsys.readouterr().err

    return run


def one_line(err: str) -> str:
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


def test_a_full_disk_stops_the_run_with_the_last_checkpoint_whole_and_it_goes_on_later(call, tmp_path, monkeypatch):
    assert call(*FLAGS, "--epochs", "3", "--ex_name", "whole")[0] == 0
    validate, calls = core.validate, []

    def and_then_the_disk_is_full(*args):
        calls.append(1)
        if len(calls) == 2:
            disk.enter_context(small_files(200_000))  # a checkpoint takes more
        return validate(*args)

    monkeypatch.setattr(core, "validate", and_then_the_disk_is_full)
    with contextlib.ExitStack() as disk:
        code, err = call(*FLAGS, "--epochs", "3", "--ex_name", "parts")
    monkeypatch.setattr(core, "validate", validate)
    assert code == 2
    assert "cannot write" in one_line(err)
    assert "the checkpoint before it is untouched" in err
    folder = tmp_path / "results/parts/checkpoints"
    assert load_checkpoint(folder / "last.pth")["epoch"] == 1
    assert not list(folder.glob("*.partial"))
    assert call("--ex_name", "parts", "--resume", "--device", "cpu")[0] == 0
    whole, parts = (load_checkpoint(tmp_path / f"results/{n}/checkpoints/last.pth") for n in ("whole", "parts"))
    assert same(whole["model"], parts["model"])
    assert same(whole["optimizer"], parts["optimizer"])


def test_a_write_behind_training_s_back_that_fails_is_told_and_harms_nothing(tmp_path):
    path, good = tmp_path / "last.pth", {"epoch": 1, "w": torch.zeros(10)}
    with Saver() as saver:
        saver.save(good, path)
        saver.wait()
        with small_files(100_000):
            saver.save({"epoch": 2, "w": torch.zeros(100_000)}, path)
            with pytest.raises(ValueError, match="cannot write") as error:
                saver.wait()
    assert "\n" not in str(error.value)
    assert load_checkpoint(path)["epoch"] == 1


def test_saving_copies_and_does_not_wait_for_the_disk(tmp_path, monkeypatch):
    import threading

    may_write, written = threading.Event(), []

    def slow(path, state, also):
        assert may_write.wait(20)
        written.extend((name.name, state["w"].clone()) for name in (*also, path))

    monkeypatch.setattr("API.run.checkpoint.save_checkpoint", slow)
    w = torch.zeros(3)
    with Saver() as saver:
        saver.save({"w": w}, tmp_path / "a", tmp_path / "b")  # returns, though nothing can be written yet
        w += 1  # training goes on
        assert written == []
        may_write.set()
    assert [name for name, _ in written] == ["a", "b"]
    assert all(torch.equal(value, torch.zeros(3)) for _, value in written)


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_computed(call):
    code, err = call(*FLAGS, "--epochs", "1", "--res_dir", "/proc/none")
    assert code == 2
    assert "--res_dir" in one_line(err)


def test_a_folder_that_vanishes_during_the_run_is_told(call, tmp_path, monkeypatch):
    validate = core.validate

    def and_the_folder_is_gone(*args):
        shutil.rmtree(tmp_path / "results/digits/checkpoints")
        return validate(*args)

    monkeypatch.setattr(core, "validate", and_the_folder_is_gone)
    code, err = call(*FLAGS, "--epochs", "1")
    assert code == 2
    assert "last.pth" in one_line(err) or "best.pth" in one_line(err)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_data_file_that_vanishes_is_named(call, tmp_path, monkeypatch, workers):
    clips = tmp_path / "clips"
    for k in range(5):
        write_video(clips / f"{k}.avi", pictures(16, seed=k))
    train, calls = core.train_one_epoch, []

    def and_the_files_are_gone(*args):
        calls.append(1)
        if len(calls) == 2:
            for path in clips.glob("*.avi"):
                path.unlink()
        return train(*args)

    monkeypatch.setattr(core, "train_one_epoch", and_the_files_are_gone)
    monkeypatch.setattr(ClipCache, "MEMORY", 0)
    shape = ["4", "1", "32", "32"]
    flags = ["--dataname", "video", "--data_root", "clips", "--no_cache", "--in_shape", *shape, "--out_shape", *shape]
    flags += ["--hid_S", "8", "--layer_config", "0", "0", "0", "1", "--batch_size", "2", "--epochs", "3"]
    flags += ["--num_workers", workers]
    code, err = call(*flags, "--precision", "fp32", "--device", "cpu", "--segments", "4", "8")
    assert code == 2
    assert ".avi" in one_line(err)
    assert last_checkpoint(tmp_path / "results/video")[1]["epoch"] == 1


def test_a_data_process_killed_by_the_system_is_told(call, tmp_path, monkeypatch):
    import multiprocessing

    move, calls = core.Machine.move, []

    def and_a_worker_dies(machine, batch):
        calls.append(1)
        if len(calls) == 2:
            for process in multiprocessing.active_children():
                os.kill(process.pid, signal.SIGKILL)
                process.join()
        return move(machine, batch)

    monkeypatch.setattr(core.Machine, "move", and_a_worker_dies)
    monkeypatch.setattr(digits, "SEQUENCES", {"train": 48, "val": 4, "test": 4})
    code, err = call(*FLAGS, "--epochs", "1", "--num_workers", "1", "--save_every", "1")
    assert code == 2
    assert "--num_workers" in one_line(err)
    assert load_checkpoint(tmp_path / "results/digits/checkpoints/last.pth")["step"] >= 1


def test_not_a_number_in_the_data_is_refused_with_the_file(call, tmp_path):
    (tmp_path / "clips").mkdir()
    for k in range(5):
        frames = np.random.default_rng(k).random((16, 32, 32), np.float32)
        frames[3, 4, 5] = np.nan if k == 2 else 0
        np.save(tmp_path / f"clips/{k}.npy", frames)
    code, err = call("data", "--dataname", "video", "--data_root", "clips", "--in_shape", "4", "1", "32", "32",
                     "--out_shape", "4", "1", "32", "32")  # fmt: skip
    assert code == 0  # the report names it and goes on
    assert "2.npy" in (tmp_path / "results/video/log.txt").read_text()
    shape = ["4", "1", "32", "32"]
    code, err = call("--dataname", "video", "--data_root", "clips", "--in_shape", *shape, "--out_shape", *shape)
    assert code == 2
    assert "2.npy" in one_line(err)


def test_memory_that_runs_out_is_told_with_the_flags_that_help(call, monkeypatch):
    def too_much(*args):
        return torch.empty(2**60)  # PyTorch's own error, of its own allocator

    monkeypatch.setattr(core, "train_one_epoch", too_much)
    code, err = call(*FLAGS, "--epochs", "1")
    assert code == 2
    assert "--accumulate" in one_line(err)
    assert "--checkpoint_blocks" in err


def test_a_checkpoint_that_does_not_fit_on_the_disk_leaves_the_one_before(tmp_path):
    path = tmp_path / "last.pth"
    save_checkpoint(path, {"epoch": 1})
    with small_files(50_000), pytest.raises(ValueError, match="untouched"):
        save_checkpoint(path, {"epoch": 2, "w": torch.zeros(100_000)})
    assert load_checkpoint(path) == {"epoch": 1}


def test_hundreds_of_damaged_files_are_read_or_refused_in_one_line(tmp_path):
    command = [sys.executable, str(REPO / "benchmarks/fuzz.py"), "--files", "630", "--seed", "7"]
    command += ["--output", str(tmp_path / "fuzz.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "fuzz.json").read_text())["result"]
    assert result["files"] == 630
    assert result["failures"] == []
    assert all(counts["refused"] > 0 for counts in result["outcomes"].values())
