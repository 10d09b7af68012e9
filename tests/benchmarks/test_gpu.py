"""The parts of benchmarks/gpu.py run at toy size, are done once, and fail one by one."""

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from data_roots import idx_file

from benchmarks import gpu, speed


def results(folder) -> dict:
    return {path.stem: json.loads(path.read_text())["result"] for path in folder.glob("*.json")}


def test_parts_are_done_once_and_written_as_they_come(tmp_path, capsys):
    flags = ["--out", str(tmp_path), "--device", "cpu", "--toy", "--only", "metrics", "tests"]
    assert gpu.run(flags) == 0
    found = results(tmp_path)
    assert found["metrics"]["found"]["sequences"] == 20
    assert found["tests"]["found"]["tests"] > 0
    assert "passed" in (tmp_path / "log.txt").read_text()
    assert gpu.run(flags) == 0
    assert capsys.readouterr().out.count("done before") == 2


@pytest.mark.parametrize("run", [gpu.run, speed.run])
def test_without_a_gpu_a_benchmark_of_one_ends_in_a_line(tmp_path, monkeypatch, capsys, run):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    flags = ["--out", str(tmp_path)] if run is gpu.run else ["--device", "cuda"]
    with pytest.raises(SystemExit) as end:
        run(flags)
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("error: --device cuda: PyTorch finds no GPU here")
    assert not list(tmp_path.iterdir())


def test_a_part_that_fails_is_told_and_tried_again_and_the_others_run(tmp_path, monkeypatch, capsys):
    tries = []

    def broken(measurement: gpu.Measurement) -> dict:
        tries.append(1)
        if len(tries) == 1:
            measurement.call(sys.executable, "-c", "raise SystemExit(3)")
        return {"tries": len(tries)}

    monkeypatch.setattr(gpu, "PARTS", {"first": (broken, 1), "second": (lambda session: {"answer": 42}, 1)})
    flags = ["--out", str(tmp_path), "--device", "cpu"]
    assert gpu.run(flags) == 1
    assert not results(tmp_path)["first"]["ok"]
    assert "exit code 3" in capsys.readouterr().out
    assert gpu.run(flags) == 0
    assert {name: result["found"] for name, result in results(tmp_path).items()} == {
        "first": {"tries": 2},
        "second": {"answer": 42},
    }


def test_a_part_ends_when_its_minutes_are_over(tmp_path, monkeypatch):
    monkeypatch.setattr(
        gpu, "PARTS", {"endless": (lambda s: s.call(sys.executable, "-c", "import time; time.sleep(60)"), 1 / 60)}
    )
    assert gpu.run(["--out", str(tmp_path), "--device", "cpu"]) == 1
    found = results(tmp_path)["endless"]
    assert "out of time" in found["error"]
    assert found["seconds"] < 20


def test_training_takes_the_digits_of_data_root_and_says_what_they_are(tmp_path):
    def made(root) -> tuple[np.ndarray, str]:
        flags = SimpleNamespace(out=tmp_path / root.name / "out", device="cpu", toy=True, minutes=1, data_root=root)
        place, what = gpu.moving_mnist(gpu.Measurement(flags))
        return np.load(f"{place}/moving_mnist/mnist_test_seq.npy"), what

    folder = tmp_path / "mnist/moving_mnist"
    folder.mkdir(parents=True)
    idx_file(folder / "train-images-idx3-ubyte.gz", np.full((6, 28, 28), 100, np.uint8))
    idx_file(folder / "t10k-images-idx3-ubyte.gz", np.full((6, 28, 28), 200, np.uint8))
    sequences, what = made(tmp_path / "mnist")
    assert set(np.unique(sequences)) == {0, 200}
    assert what == "MNIST, and test sequences generated from its test digits"
    np.save(folder / "mnist_test_seq.npy", sequences[:, :3])
    assert made(tmp_path / "mnist")[0].shape == (20, 3, 64, 64)  # the file that is there
    sequences, what = made(tmp_path / "empty")
    assert len(np.unique(sequences)) > 10
    assert "not MNIST" in what


def test_the_command_lists_every_part():
    told = subprocess.run([sys.executable, gpu.__file__, "--list"], capture_output=True, text=True, check=True).stdout
    assert [line.split()[0] for line in told.splitlines()] == list(gpu.PARTS)


@pytest.mark.parametrize("flags", [[], ["--out", "x", "--only", "nonsense"]], ids=str)
def test_flags_that_make_no_sense_are_refused(flags):
    with pytest.raises(SystemExit) as stop:
        gpu.run(flags)
    assert stop.value.code == 2
