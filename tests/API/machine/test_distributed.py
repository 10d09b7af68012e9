"""Two processes on this machine, over Gloo: the same numbers as one, and nothing lost when one of them dies."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from worker import can_shard

from API import UserError
from API.machine.distributed import World
from API.machine.sharding import distribute
from API.run.checkpoint import load_checkpoint
from API.run.flags import refuse_changed_flags, sequences_at_once

WORKER = str(Path(__file__).parent / "worker.py")
FLAGS = [
    "--dataname", "digits", "--in_shape", "4", "1", "32", "32", "--out_shape", "4", "1", "32", "32", "--hid_S", "8",
    "--layer_config", "1", "1", "0", "1", "--batch_size", "4", "--val_batch_size", "2", "--epochs", "2",
    "--precision", "fp32", "--device", "cpu", "--lr", "1e-5",
]  # fmt: skip


def run(folder: Path, *argv: str, processes: int = 2, restarts: int = 0, **env: object) -> subprocess.CompletedProcess:
    """The worker with argv, in folder, under torchrun with more than one process."""
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        launch += [f"--max_restarts={restarts}"]
    environment = os.environ | {name: str(value) for name, value in env.items()} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launch, WORKER, *argv], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def results(folder: Path, name: str) -> tuple[list[dict], dict]:
    records = [json.loads(s) for s in (folder / f"results/{name}/metrics.jsonl").read_text().splitlines()]
    return records, json.loads((folder / f"results/{name}/test.json").read_text())


def assert_alike(folder: Path, name: str) -> None:
    """Run name's epochs and test scores are those of the run of one process, within float32's rounding."""
    (epochs, test), (expected_epochs, expected) = results(folder, name), results(folder, "one")
    assert [record["epoch"] for record in epochs] == [1, 2]
    for record, other in zip(epochs, expected_epochs):
        for key in ("train_loss", "val_loss", "val_mse", "val_ssim"):
            assert record[key] == pytest.approx(other[key], rel=2e-3), key
        assert record["lr"] == other["lr"]
    assert test["sequences"] == expected["sequences"] == 7
    assert test["strict"]["model"]["mse"]["mean"] == pytest.approx(expected["strict"]["model"]["mse"]["mean"], rel=2e-3)
    assert test["strict"]["copy_last"] == expected["strict"]["copy_last"]  # no model in it: to the bit
    last = load_checkpoint(folder / f"results/{name}/checkpoints/last.pth")
    assert {int(moment["step"]) for moment in last["optimizer"]["state"].values()} == {10}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where one process has done the whole run, as `one`."""
    path = tmp_path_factory.mktemp("runs")
    done = run(path, *FLAGS, "--ex_name", "one", processes=1)
    assert done.returncode == 0, done.stdout + done.stderr
    return path


def test_two_processes_give_the_loss_the_gradients_and_the_scores_of_one(tmp_path):
    done = run(tmp_path, "--compare", "found.json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    for way in [way for way in found if way.endswith(("copies", "shards"))]:
        assert max(found[way].values()) < 1e-5, (way, found[way])
    assert 0 < found["compressed"]["gradients"] < 1e-2  # bfloat16's rounding, and not more
    assert can_shard() == ("states" in found)
    assert max(found.get("states", {"": 0}).values()) < 1e-5
    assert found["accumulated"] < 1e-5
    assert found["scores"] < 1e-6
    assert found["worst"]
    assert found["batches"]
    assert found["test_set"]
    assert found["any"] == [True, False]


def test_a_run_stopped_with_two_processes_goes_on_with_one_and_the_other_way_round(folder):
    two = run(folder, *FLAGS, "--ex_name", "two", "--resume", "auto", STOP=3)
    assert two.returncode != 0
    assert "stopped in epoch 1, step 3; go on with --resume" in two.stderr
    place = load_checkpoint(folder / "results/two/checkpoints/last.pth")
    assert (place["epoch"], place["step"]) == (0, 3)
    stopped = run(folder, *FLAGS, "--ex_name", "two", "--resume", "auto", processes=1, STOP=4)  # in the second epoch
    assert stopped.returncode == 75, stopped.stdout + stopped.stderr
    done = run(folder, *FLAGS, "--ex_name", "two", "--resume", "auto")
    assert done.returncode == 0, done.stdout + done.stderr
    assert_alike(folder, "two")
    assert (folder / "results/two/log.txt").read_text().count("epoch 1/2") == 1  # the first process alone writes


def test_torchrun_starts_again_after_a_killed_process_and_nothing_is_lost(folder):
    shard = ["--shard"] if can_shard() else []
    done = run(folder, *FLAGS, "--ex_name", "killed", "--save_every", "1", *shard, restarts=1, KILL=8)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_alike(folder, "killed")
    log = folder / "results/killed/log.txt"
    assert "epochs 2 to 2" in log.read_text()  # it did not begin anew
    before = log.read_text()
    refused = run(folder, *FLAGS, "--ex_name", "killed", restarts=1)  # no restart goes on with a run of another call
    assert refused.returncode != 0
    assert "holds a run already" in refused.stderr
    assert log.read_text() == before


def test_a_killed_process_ends_the_run_with_a_message_and_a_sound_checkpoint(folder):
    done = run(folder, *FLAGS, "--ex_name", "dead", "--save_every", "1", KILL=4)
    assert done.returncode != 0
    assert "error: another process of this run is gone" in done.stderr or "Signal 9 (SIGKILL)" in done.stderr
    kept = load_checkpoint(folder / "results/dead/checkpoints/last.pth")
    assert (kept["epoch"], kept["step"]) in [(0, 2), (0, 3)]


def test_batches_must_divide_among_processes_and_parts():
    from types import SimpleNamespace

    for batch, accumulate, processes, flag in ((16, 1, 3, "--batch_size 16"), (16, 3, 2, "--accumulate 3")):
        with pytest.raises(UserError, match=flag):
            sequences_at_once(SimpleNamespace(batch_size=batch, accumulate=accumulate), processes)
    assert sequences_at_once(SimpleNamespace(batch_size=16, accumulate=4), 2) == 2


def test_many_processes_without_torchrun_are_a_line(monkeypatch):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"WORLD_SIZE is 2.*RANK is not set; start them with torchrun, or unset"):
        World(torch.device("cpu"))


def test_one_process_is_the_model_itself():
    model, world = torch.nn.Linear(2, 2), World(torch.device("cpu"))
    assert distribute(model, world, torch.device("cpu"), [], False, False) is model
    assert world.share([1, 2, 3]) == [1, 2, 3]
    assert world.any(True, False) == [True, False]
    with pytest.raises(UserError, match="--lr"):  # what else must not change is as with one process
        refuse_changed_flags({"lr": 1}, {"lr": 2}, ["lr"])


@pytest.mark.parametrize("code", [0, 2, 75])
def test_one_process_of_several_ends_with_all_said_and_python_not_shut_down(code):
    script = (
        "import atexit, torch; from API.machine.processes import leave; atexit.register(print, 'shut down');"
        f" print('said', end=''); leave({code}, well={code != 2})"
    )
    for processes, expected in ((1, "saidshut down\n"), (2, "said")):
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=Path(__file__).parents[3],
            env=os.environ | {"WORLD_SIZE": str(processes)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stdout) == (code, expected), done.stderr
