"""How fast DFDNet trains and predicts, beside itself under --plain, another model of its purpose (tau.py), other
checkouts of this repo, and what the machine can do at all.

    python benchmarks/speed.py [--device cuda] [--models mmnist digits] [--batches 1 4 16] [--rounds 15]
    python benchmarks/speed.py --against ../before      the pace before a change and after it

Each is a process of its own (subject.py). In every round each takes one training step (forward, loss, backward, Adam),
or one prediction, in every precision, and a large matrix product is timed, too: so drift hits all alike, and ratios are
of one round. Inputs are random. Multiply-adds are counted, a backward pass as two forward ones. Prints a table, and
writes benchmarks/results/speed.json (speed_cuda.json), after every measurement.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from API.evaluation.summary import costs, work
from API.presets import PRESETS
from benchmarks.record import RESULTS, check_device, write_result
from benchmarks.tau import TAU
from core import MODEL_FLAGS
from DFDNet import DFDNet

REPO = Path(__file__).resolve().parents[1]
AGAINST = "against "  # before the folder's name, where the subject is of another checkout


class Subject:
    """A process of subject.py."""

    def __init__(self, name: str, model: str, device: str, repo: Path = REPO) -> None:
        code = "product" if name.startswith(AGAINST) else name
        command = [sys.executable, Path(__file__).with_name("subject.py"), repo, code, model, device]
        self.name = name
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=repo)
        self.read()

    def ask(self, what: str, kind: str = "fp32", batch: int = 0) -> dict:
        """The answer to a request."""
        self.process.stdin.write(json.dumps({"what": what, "kind": kind, "batch": batch}) + "\n")
        self.process.stdin.flush()
        return self.read()

    def read(self) -> dict:
        """The next answer; what else the process says is printed."""
        for line in self.process.stdout:
            if line.startswith("ANSWER "):
                return json.loads(line.removeprefix("ANSWER "))
            print(f"{self.name}: {line.rstrip()}", flush=True)
        raise RuntimeError(f"{self.name} ended with exit code {self.process.wait()}")

    def close(self) -> None:
        """End the process, and give its memory back."""
        self.process.stdin.close()
        self.process.wait()


def measure(
    subjects: Sequence[Subject], matrices: Subject, what: str, kinds: Sequence[str], batch: int, rounds: int
) -> dict[tuple[str, str], list[float]]:
    """{(subject, kind): seconds of every round}, matrix rates in FLOP/s under "matrices"; without those that run out
    of memory."""
    works = [(s, kind) for s, kind in itertools.product(subjects, kinds)]
    works = [(s, kind) for s, kind in works if "error" not in s.ask(what, kind, batch)]  # the first one warms up
    found: dict[tuple[str, str], list[float]] = {(s.name, kind): [] for s, kind in works}
    rates: dict[tuple[str, str], list[float]] = {("matrices", kind): [] for kind in kinds}
    for turn in range(rounds + 1):  # the first one warms up
        for kind in kinds:
            product = matrices.ask("matrices", kind)
            rates["matrices", kind] += [product["flops"] / product["seconds"]] * (turn > 0)
        for s, kind in works:
            found[s.name, kind] += [s.ask(what, kind, batch).get("seconds")] * (turn > 0)
    return {key: seconds for key, seconds in found.items() if None not in seconds} | rates


def ratio(others: Sequence[float], seconds: Sequence[float]) -> list[float]:
    """[median, smallest, largest] of how many times as fast, round by round."""
    ratios = [other / own for other, own in zip(others, seconds)]
    return [statistics.median(ratios), min(ratios), max(ratios)]


def describe(found: dict[tuple[str, str], list[float]], name: str, kind: str, batch: int, flops: float) -> dict:
    """A row of the table. flops: of one sequence."""
    seconds = found[name, kind]
    row = {"subject": name, "kind": kind, "batch": batch}
    row["sequences_per_second"] = batch / statistics.median(seconds)
    row["range"] = [batch / max(seconds), batch / min(seconds)]
    row["of_limit"] = ratio([batch * flops / rate for rate in found["matrices", kind]], seconds)
    others = {f"times {other}": (other, kind) for other, _ in found if other not in (name, "matrices")}
    others["times plain fp32"] = ("plain", "fp32")
    row["ratios"] = {what: ratio(found[key], seconds) for what, key in others.items() if key in found}
    return row


def show(what: str, row: dict) -> None:
    """Print a row."""
    times = "  ".join(f"{name[6:]} {m:.2f} ({low:.2f}-{high:.2f})" for name, (m, low, high) in row["ratios"].items())
    pace = f"{what:<6}{row['subject']:<16}{row['kind']}  batch {row['batch']:<3}{row['sequences_per_second']:9.2f}/s"
    print(f"{pace}  {row['of_limit'][0]:.0%} of the limit;  times as fast as: {times}", flush=True)


def forward_flops(name: str, model: str) -> float:
    """Of one sequence."""
    build, shape = (
        (lambda: TAU(10, 1), (10, 1, 64, 64)) if name == "TAU" else (builder(model), PRESETS[model]["in_shape"])
    )
    return 2 * work(build, shape)["multiply_adds"]


def builder(model: str):
    """What makes a preset's model."""
    return lambda: DFDNet(**{flag: PRESETS[model].get(flag, False) for flag in MODEL_FLAGS})


def measure_model(model: str, args: argparse.Namespace, kinds: Sequence[str], gpu: bool):
    """Yields {"train": rows, "infer": rows, …} after every batch size, more complete each time."""
    device, result = "cuda" if gpu else "cpu", {"train": [], "infer": [], "accelerate_seconds": {}, "counts": {}}
    there = {"TAU": model == "mmnist", "compiled": args.compile, "graphed": args.compile and gpu}
    names = [name for name in args.subjects if there.get(name, True)]
    flops = {name: forward_flops(name, model) for name in names}
    where = {name: REPO for name in names} | {AGAINST + folder.name: folder.resolve() for folder in args.against}
    preset = PRESETS[model]["batch_size"]
    batches = args.batches or [preset if gpu or model == "digits" else min(preset, 2)]
    one = preset if preset in batches else batches[0]  # of what is counted once
    matrices = Subject("matrices", model, device)
    for what, factor in (("train", 3), ("infer", 1)):
        subjects = [Subject(name, model, device, repo) for name, repo in where.items()]
        for batch in batches:
            found = measure(subjects, matrices, what, kinds, batch, args.rounds)
            for name, kind in found:
                if name != "matrices":
                    row = describe(found, name, kind, batch, factor * flops.get(name, flops["product"]))
                    result[what].append(row)
                    show(what, row)
            yield result
        for s in subjects if what == "train" else ():
            result["accelerate_seconds"][s.name] = s.ask("compiled")["seconds"]
            for kind in kinds if gpu else ():
                result["counts"][f"{s.name} {kind}"] = s.ask("counts", kind, one)
        for s in subjects:
            s.close()
    matrices.close()
    shape = PRESETS[model]["in_shape"]
    result["counted"] = {kind: costs(builder(model), DFDNet.blocks, shape, one, kind == "bf16", gpu)
                         for kind in kinds if kind != "tf32"}  # fmt: skip
    yield result


def read_flags(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--models", nargs="+", default=["mmnist", "digits"], choices=PRESETS, help="presets")
    parser.add_argument(
        "--subjects", nargs="+", default=["product", "compiled", "graphed", "plain", "TAU"], help="who is timed"
    )
    parser.add_argument("--against", type=Path, nargs="*", default=[], metavar="DIR", help="other checkouts")
    parser.add_argument("--kinds", nargs="+", choices=("fp32", "tf32", "bf16"), help="precisions (default: all)")
    parser.add_argument("--batches", type=int, nargs="+", help="default: the preset's; on a CPU 2 of mmnist")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="time it, too (default: on a GPU)")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/speed.json, speed_cuda.json on a GPU")
    args = parser.parse_args(argv)
    check_device(parser, args.device)
    if "product" not in args.subjects:
        parser.error("--subjects: product must be among them")
    return args


def run(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    args = read_flags(argv)
    gpu = torch.cuda.is_available() if args.device == "auto" else args.device == "cuda"
    args.compile = gpu if args.compile is None else args.compile
    kinds = args.kinds or (["fp32", "tf32", "bf16"] if gpu else ["fp32", "bf16"])
    results: dict = {}
    for model in args.models:
        print(f"{model}:", flush=True)
        for result in measure_model(model, args, kinds, gpu):
            results[model] = result
            write_result(args.output or RESULTS / ("speed_cuda.json" if gpu else "speed.json"), results, seed=1)
    if "mmnist" in results:
        best = max(row["sequences_per_second"] for row in results["mmnist"]["train"] if row["subject"] in
                   ("product", "compiled", "graphed"))  # fmt: skip
        print(f"2000 epochs of Moving MNIST at the best pace: {2000 * 10_000 / best / 3600:.0f} hours")


if __name__ == "__main__":
    run()
