"""Kill training at random instants, with SIGKILL, and see whether it goes on to the same bits.

    python benchmarks/faults.py [--kills 100] [--seed 1]

A small run on Moving Digits, saving after every step, is killed, started again with --resume auto, killed, … until it
ends; then the next one, until so many kills are done. Every run's last checkpoint (weights, moments, schedule, random
states, place) and its records must equal an undisturbed run's, bit for bit. Prints what it saw, and writes
benchmarks/results/faults.json. Exit code 1 if a run differs.
"""

import argparse
import collections
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import sklearn.datasets  # noqa: F401 - here, so that the processes below, copies of this one, need not load it
import torch
import torch._dynamo

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import core  # noqa: F401
import main
from API.datasets import digits
from API.evaluation import figures
from API.run.checkpoint import digest, last_checkpoint
from benchmarks.record import RESULTS, write_result

FLAGS = [
    "--dataname", "digits", "--in_shape", "4", "1", "32", "32", "--out_shape", "4", "1", "32", "32", "--hid_S", "8",
    "--layer_config", "1", "1", "0", "1", "--batch_size", "4", "--epochs", "2", "--precision", "fp32",
    "--device", "cpu", "--save_every", "1", "--resume", "auto", "--ex_name",
]  # fmt: skip
PARTS = ("model", "optimizer", "scheduler", "random", "epoch", "step", "total", "skipped", "best", "lr")


def start(folder: Path, name: str) -> int:
    """A process that trains run `name` in folder, or goes on with it; its number."""
    if number := os.fork():
        return number
    try:
        os.chdir(folder)
        log = os.open(folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = main.main([*FLAGS, name])
    except BaseException:
        code = 99
    os._exit(code)


def bits(folder: Path, name: str) -> dict[str, str]:
    """Of a run that has ended: checksums of its last checkpoint's parts, and of its records but for their times."""
    _, state = last_checkpoint(folder / "results" / name)
    records = [json.loads(line) for line in (folder / "results" / name / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        for key in ("seconds", "sequences_per_second", "waiting"):
            del record[key]
    return {part: digest(state[part]) for part in PARTS} | {"records": json.dumps(records)}


def phase(folder: Path, name: str) -> str:
    """Where a killed run had come to."""
    run = folder / "results" / name
    if (run / "test.json").exists():
        return "testing"
    if list(run.glob("checkpoints/*.partial")) or list(run.glob("checkpoints/*.link")):
        return "writing a checkpoint"
    return "training" if list(run.glob("checkpoints/last.pth")) else "starting"


def run() -> int:
    """Kill, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS / "faults.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    digits.SEQUENCES = {"train": 20, "val": 4, "test": 4}
    figures.save_figure = lambda figure, path: path.touch()
    chance = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.monotonic()
        code = os.waitstatus_to_exitcode(os.waitpid(start(folder, "whole"), 0)[1])
        seconds = time.monotonic() - began
        if code:
            print((folder / "whole.log").read_text())
            return 1
        expected = bits(folder, "whole")
        kills, runs, phases, different, ended = 0, 0, collections.Counter(), [], False
        while kills < args.kills or not ended:
            ended, name = False, f"parts{runs}"
            number = start(folder, name)
            if kills < args.kills:
                deadline = time.monotonic() + chance.uniform(0, seconds)
                while time.monotonic() < deadline and not ended:
                    ended = os.waitid(os.P_PID, number, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
                    time.sleep(0.002)
                if not ended:
                    os.kill(number, signal.SIGKILL)
                    kills += 1
                    phases[phase(folder, name)] += 1
            code = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
            if code == -signal.SIGKILL:
                continue
            ended = True
            runs += 1
            found = bits(folder, name) if code == 0 else {}
            if found != expected:
                wrong = [part for part in expected if found.get(part) != expected[part]]
                different.append({"run": name, "exit_code": code, "parts": wrong})
                print((folder / f"{name}.log").read_text()[-2000:])
    result = {"kills": kills, "while": dict(phases), "runs": runs, "different": different}
    print(f"{kills} kills in {runs} runs of {seconds:.1f} s ({dict(phases)}): {len(different)} runs differ")
    write_result(args.output, result, args.seed)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(run())
