"""Everything that a GPU can tell, in one command.

    python benchmarks/gpu.py --out gpu_results [--minutes 25] [--data_root data] [--only PART …]
    python benchmarks/gpu.py --list
    python benchmarks/gpu.py --out /tmp/toy --device cpu --toy        every part at toy size

Every part writes DIR/PART.json when it is done, and what it said to DIR/log.txt. Started again with the same --out,
parts that are done are left out, and training goes on. A part that fails or runs out of its time is told, written down
as such, and tried again the next time. Training gets the minutes that the others leave. Exit code 1 if a part failed.
"""

import argparse
import contextlib
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from API.datasets import digits
from API.datasets.mmnist import read_idx_images
from API.datasets.moving import TEST, MovingDigits
from API.evaluation.summary import training_bytes
from API.run.checkpoint import digest, last_checkpoint
from benchmarks.record import check_device, write_result

REPO = Path(__file__).resolve().parents[1]
BENCHMARKS, MAIN = REPO / "benchmarks", REPO / "main.py"
TINY = [
    "--in_shape", "4", "1", "32", "32", "--out_shape", "4", "1", "32", "32", "--hid_S", "4", "--layer_config", "1", "1",
    "0", "1", "--epoch_size", "40", "--batch_size", "4",
]  # fmt: skip


class Failed(Exception):
    """A part has not done what it was to do; the message says what."""


class Measurement:
    """Where the parts run: flags, time, log."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.out, self.device, self.toy = args.out.resolve(), args.device, args.toy
        self.end = time.monotonic() + 60 * args.minutes
        self.data_root, self.part_end = args.data_root, self.end
        self.out.mkdir(parents=True, exist_ok=True)

    def left(self) -> float:
        """Seconds until the part must end."""
        return self.part_end - time.monotonic()

    def start(self, *command: object) -> subprocess.Popen:
        """A command in a process group of its own, its output in log.txt."""
        words = [str(word) for word in command]
        with (self.out / "log.txt").open("a", encoding="utf-8") as log:
            log.write(f"\n$ {' '.join(words)}\n")
            log.flush()
            return subprocess.Popen(
                words, cwd=self.out, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(self.out / "inductor")},
            )  # fmt: skip

    def call(self, *command: object, codes: Sequence[int] = (0,)) -> float:
        """Run a command to its end, seconds; raises Failed at another exit code, and when the part's time is over."""
        began, process = time.monotonic(), self.start(*command)
        try:
            code = process.wait(max(1.0, self.left()))
        except subprocess.TimeoutExpired:
            stop(process)
            raise Failed(f"out of time: {command[1]} {command[2] if len(command) > 2 else ''}") from None
        except BaseException:
            stop(process)
            raise
        if code not in codes:
            raise Failed(f"exit code {code}, see log.txt: {' '.join(map(str, command[1:]))}")
        return time.monotonic() - began

    def main(self, *flags: object, codes: Sequence[int] = (0,)) -> float:
        """Run main.py on the device."""
        return self.call(sys.executable, MAIN, *flags, "--device", self.device, "--res_dir", self.out, codes=codes)

    def benchmark(self, name: str, *flags: object) -> dict:
        """Run another benchmark; its result."""
        output = self.out / "parts" / name.replace(".py", ".json")
        output.parent.mkdir(exist_ok=True)
        self.call(sys.executable, BENCHMARKS / name, *flags, "--device", self.device, "--output", output)
        return json.loads(output.read_text())["result"]


def stop(process: subprocess.Popen) -> None:
    """End a process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def tests(s: Measurement) -> dict:
    """The test suite, where there is a GPU."""
    which = REPO / ("tests/test_wfl.py" if s.toy else "tests")
    xdist = ["-n", "8"] if find_spec("xdist") and not s.toy else []
    report = s.out / "parts/tests.xml"
    pytest = [sys.executable, "-m", "pytest", "-q", *xdist, "--rootdir", REPO, f"--junitxml={report}", which]
    seconds = s.call(*pytest, codes=(0, 1))
    suite = ElementTree.parse(report).getroot()[0].attrib
    found = {key: int(suite[key]) for key in ("tests", "failures", "errors", "skipped")} | {"seconds": seconds}
    if found["failures"] or found["errors"]:
        raise Failed(f"{found['failures']} of {found['tests']} tests fail, {found['errors']} do not run: see log.txt")
    return found


def speed(s: Measurement) -> dict:
    """Eager, compiled, graphed, plain, TAU, in every precision and batch size; kernels; memory beside summary's."""
    flags = ["--models", "digits", "--rounds", 1, "--kinds", "fp32", "--batches", 2] if s.toy else [
        "--models", "mmnist", "--rounds", 3, "--batches", 1, 4, 16, 64]  # fmt: skip
    result = s.benchmark("speed.py", *flags)
    choices = {"product": "eager", "plain": "eager", "compiled": "--compile"}  # a graph's memory is taken at capture
    for found in result.values():
        counted = {"tf32": found["counted"]["fp32"]} | found["counted"]
        found["peak_beside_summary"] = {
            who: said["peak_bytes"] / training_bytes(counted[who.split()[1]], choices[who.split()[0]])
            for who, said in found["counts"].items() if who.split()[0] in choices
        }  # fmt: skip
    return result


def compile_time(s: Measurement) -> dict:
    """Seconds to compile the model's blocks, with nothing in Inductor's cache and with everything."""
    shutil.rmtree(s.out / "inductor", ignore_errors=True)
    small = ["--toy", "--batch_size", 2] if s.toy else []
    return {cache: s.benchmark("compiling.py", *small)["seconds"] for cache in ("empty", "full")}


def resume(s: Measurement) -> dict:
    """A run that is stopped and resumed ends with the bits of one that is not, with --deterministic."""
    flags = ["--dataname", "digits", "--epochs", 2, "--deterministic", *(TINY if s.toy else ["--epoch_size", 200])]
    s.main(*flags, "--ex_name", "whole", "--overwrite")
    shutil.rmtree(s.out / "parted", ignore_errors=True)
    process = s.start(sys.executable, MAIN, *flags, "--ex_name", "parted", "--save_every", 1, "--device", s.device,
                      "--res_dir", s.out)  # fmt: skip
    while not (s.out / "parted/checkpoints/last.pth").exists() and process.poll() is None and s.left() > 0:
        time.sleep(0.01)
    process.terminate()
    if process.wait() != 75:
        stop(process)
        raise Failed(f"stopped with exit code {process.returncode} instead of 75, see log.txt")
    _, state = last_checkpoint(s.out / "parted")
    place = f"epoch {state['epoch'] + 1}, step {state['step']}"
    s.main(*flags, "--ex_name", "parted", "--resume")
    ends = [last_checkpoint(s.out / name)[1] for name in ("whole", "parted")]
    parts = ("model", "optimizer", "scheduler", "random", "epoch", "step", "best")
    differ = [part for part in parts if digest(ends[0][part]) != digest(ends[1][part])]
    if differ:
        raise Failed(f"resumed after {place}, these differ: {', '.join(differ)}")
    return {"stopped_at": place, "differ": differ}


def processes(s: Measurement) -> dict:
    """--gpu with the last GPU; torchrun with one process; NCCL, copies, shards and BatchNorm in one process."""
    import torch

    last = max(torch.cuda.device_count() - 1, 0)
    size = TINY if s.toy else ["--epoch_size", 40]
    flags = ["--dataname", "digits", "--epochs", 1, *size, "--overwrite"]
    found = {f"--gpu {last}": s.main(*flags, "--gpu", last, "--ex_name", "gpu")}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 1]
    where = ["--device", s.device, "--res_dir", s.out, "--ex_name", "torchrun"]
    found["torchrun"] = s.call(*torchrun, MAIN, *flags, *where)
    found["one_process.py"] = s.call(*torchrun, BENCHMARKS / "one_process.py", s.device)
    return {"seconds": found}


def metrics(s: Measurement) -> dict:
    """Scoring 10,000 sequences."""
    return s.benchmark("metrics.py", *(["--sequences", 20, "--batch_size", 10, "--rounds", 1] if s.toy else []))


def data(s: Measurement) -> dict:
    """Loading data against the training step."""
    small = ["--seconds", 0.1, "--train_steps", 1, "--train_batch", 2, "--only", "digits"]
    large = ["--seconds", 0.5, "--train_steps", 20, "--only", "mmnist", "digits", "kth"]
    return {"rows": s.benchmark("data.py", *(small if s.toy else large))}


def moving_mnist(s: Measurement) -> tuple[str, str]:
    """A --data_root with Moving MNIST in it, and what that is made of: the one of the flag, its test sequences
    generated where they lack; or, where it has no MNIST, scikit-learn's digits."""
    images, sequences = ("train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz"), "mnist_test_seq.npy"
    given, own = Path(s.data_root).resolve() / "moving_mnist", s.out / "data/moving_mnist"
    if (given / sequences).exists():
        return str(given.parent), "MNIST, and the test sequences of --data_root"
    own.mkdir(parents=True, exist_ok=True)
    if all((given / name).exists() for name in images):
        what = "MNIST, and test sequences generated from its test digits"
        for name in images:
            shutil.copyfile(given / name, own / name)
    else:
        what = "scikit-learn's digits, not MNIST"
        for name, split in zip(images, ("train", "test")):
            pictures = digits.digit_images(split)
            header = np.array([2051, *pictures.shape], dtype=">i4").tobytes()
            (own / name).write_bytes(gzip.compress(header + pictures.tobytes()))
    if not (own / sequences).exists():
        count = 10 if s.toy else 1000
        made = MovingDigits(read_idx_images(own / images[1]), count, (20, 1, 64, 64), (0, 1, 64, 64), 0, TEST)
        np.save(own / sequences, made.draw(list(range(count))).swapaxes(0, 1).reshape(20, count, 64, 64))
    return str(own.parent), what


def train(s: Measurement) -> dict:
    """Moving MNIST with the full model for the minutes that are left, and its learning curve."""
    (root, what), plan = moving_mnist(s), s.out / "parts/plan.json"
    if not plan.exists():  # the schedule needs the number of epochs
        pace = 100.0  # sequences a second, until speed has measured it
        with contextlib.suppress(OSError, KeyError, ValueError):
            rows = json.loads((s.out / "parts/speed.json").read_text())["result"]["mmnist"]["train"]
            pace = max(r["sequences_per_second"] for r in rows if r["subject"] == "compiled" and r["batch"] == 16)
        epochs = 1 if s.toy else max(1, int(0.75 * (s.left() - 90) * pace / 2000))  # the rest: validation and test
        plan.write_text(json.dumps(epochs))
    epochs = json.loads(plan.read_text())
    small = ["--in_shape", 10, 1, 64, 64, "--hid_S", 8, "--batch_size", 2, "--val_batch_size", 50]
    small += ["--layer_config", 1, 1, 0, 1]
    flags = [*small, "--epoch_size", 4] if s.toy else ["--epoch_size", 2000, "--log_step", max(1, epochs // 20)]
    command = [sys.executable, MAIN, "--dataname", "mmnist", "--data_root", root, "--epochs", epochs, *flags,
               "--device", s.device, "--res_dir", s.out, "--ex_name", "train", "--resume", "auto"]  # fmt: skip
    process = s.start(*command)
    try:
        code = process.wait(max(1.0, s.left() - 20))
    except subprocess.TimeoutExpired:
        process.terminate()  # saves
        code = process.wait()
    if code not in (0, 75):
        raise Failed(f"exit code {code}, see log.txt: {' '.join(map(str, command[1:]))}")
    records = [json.loads(line) for line in (s.out / "train/metrics.jsonl").read_text().splitlines()]
    keys = "epoch", "val_mse", "val_ssim", "sequences_per_second"
    found = {"ok": code == 0, "epochs": epochs, "data": what, "pictures": "train/figures"}
    found["curve"] = [{key: record[key] for key in keys} for record in records if "val_mse" in record]
    if code == 75:
        return found | {"error": f"out of time in epoch {len(records) + 1} of {epochs}: goes on when started again"}
    return found | {"test": json.loads((s.out / "train/test.json").read_text())["strict"]}


PARTS: dict[str, tuple[Callable[[Measurement], dict], float]] = {  # with the minutes that it may take
    "tests": (tests, 4),
    "compile": (compile_time, 3),
    "speed": (speed, 8),
    "resume": (resume, 2),
    "processes": (processes, 2),
    "metrics": (metrics, 1),
    "data": (data, 2),
    "train": (train, float("inf")),
}


def run(argv: Sequence[str] | None = None) -> int:
    """Run the parts; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for results, log and pictures")
    parser.add_argument("--minutes", type=float, default=25, help="for all parts together")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help="parts to run")
    parser.add_argument("--data_root", metavar="DIR", default="data", help="with MNIST in moving_mnist/ (%(default)s)")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--toy", action="store_true", help="everything small")
    parser.add_argument("--list", action="store_true", help="say what the parts are")
    args = parser.parse_args(argv)
    if args.list:
        for name, (part, minutes) in PARTS.items():
            print(f"{name:<10} {part.__doc__}  ({'what is left' if name == 'train' else f'{minutes} minutes at most'})")
        return 0
    if args.out is None:
        parser.error("--out DIR is needed")
    check_device(parser, args.device)
    measurement, failed = Measurement(args), []
    (measurement.out / "parts").mkdir(exist_ok=True)
    for name in args.only or PARTS:
        part, minutes = PARTS[name]
        path = measurement.out / f"{name}.json"
        if path.exists() and json.loads(path.read_text())["result"]["ok"]:
            print(f"{name}: done before", flush=True)
            continue
        began = time.monotonic()
        measurement.part_end = min(measurement.end, began + 60 * minutes * (10 if args.toy else 1))
        try:
            found = part(measurement) if measurement.left() > 0 else {"ok": False, "error": "no time left"}
            result = {"ok": found.pop("ok", True), "error": found.pop("error", None), "found": found}
        except Exception as error:
            result = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        result["seconds"] = time.monotonic() - began
        write_result(path, result, seed=1)
        failed += [name] * (not result["ok"])
        said = "ok" if result["ok"] else result["error"]
        print(f"{name}: {said} ({result['seconds']:.0f} s)", flush=True)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(run())
