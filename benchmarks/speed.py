"""How fast DFDNet trains and predicts, beside a plain DFDNet (plain.py), another model of its purpose (tau.py), and
what the machine can do at all.

    python benchmarks/speed.py [--device cuda] [--rounds 5] [--batches 1 2 4 … 64] [--presets digits kth …]

In one run: the machine's matrix rates and copy bandwidth; training steps (forward, loss, backward, Adam) and
inference of the Moving MNIST model, every precision, the yardstick, TAU and a large matrix product in turn, round by
round, so that drift hits all alike; batch sizes, with a matrix product beside each step; presets; bytes kept for
backward; peak memory; where the time of a step goes. Inputs are random. Multiply-adds are counted, a backward pass as
two forward ones. The yardstick and TAU run in processes of their own, where nothing of the product's settings reaches
them. Prints tables, and writes benchmarks/results/speed.json (speed_cuda.json).
"""

import argparse
import copy
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from API.evaluation.summary import costs, kept_bytes
from API.machine.device import Machine
from API.presets import PRESETS
from benchmarks.breakdown import breakdown
from benchmarks.record import RESULTS, write_result
from benchmarks.subjects import OTHERS, Apart, Clock, MatrixProduct, Subject, interleaved
from core import MODEL_FLAGS
from DFDNet import DFDNet
from WFL import WeightedFrequencyLoss


def measure_machine(device: torch.device, kinds: list[str], clock: Clock) -> dict:
    """Large matrix products, in FLOP/s by precision, and a large copy, in bytes/s read plus written."""
    products = {kind: MatrixProduct(kind, device) for kind in kinds}
    rates = {kind: product.flops / clock.median(product, 7) for kind, product in products.items()}
    source = torch.randn(2**28 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / clock.median(lambda: target.copy_(source), 7)
    said = ", ".join(f"{kind} {rate / 1e12:.2f} TFLOP/s" for kind, rate in rates.items())
    print(f"{device}: {said}, copy {copied / 1e9:.0f} GB/s", flush=True)
    return {"matrix_flops": rates, "copy_bytes": copied}


def random_batch(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(past, future) of the Moving MNIST model."""
    return torch.rand(size, 10, 1, 64, 64, device=device), torch.rand(size, 10, 1, 64, 64, device=device)


def make_subjects(
    model: DFDNet, kinds: list[str], device: torch.device, compiled: bool, size: int
) -> tuple[dict[str, Subject], dict[str, str]]:
    """The model in every precision, eager and, where asked for, compiled for batches of size; and what it said."""
    subjects = {kind: Subject(copy.deepcopy(model), WeightedFrequencyLoss(10, 64, 64), kind, device) for kind in kinds}
    said = {}
    for kind in kinds if compiled else ():
        criterion = WeightedFrequencyLoss(10, 64, 64)
        subject = Subject(copy.deepcopy(model), criterion, kind, device, compile_for=size)
        said[kind] = subject.said
        print(f"{kind}: {said[kind]}", flush=True)
        subjects[f"{kind} compiled"] = subject
    return subjects, said


@torch.no_grad()
def compare_predictions(model: DFDNet, plain: Apart, batch: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Largest differences between predictions of ours and the yardstick, in float64, in float32, and between the two.

    In float32 rounding decides of some bins whether they clear the threshold; in float64 of none.
    """
    single = model(batch[0]).cpu(), plain.ask("predict", *batch)
    double = model.double()(batch[0].double()).cpu(), plain.ask("predict", batch[0].double(), batch[1])
    pairs = {
        "ours and yardstick, float64": (double[0], double[1]),
        "ours and yardstick, float32": (single[0], single[1]),
        "ours, float32 and float64": (single[0], double[0]),
        "yardstick, float32 and float64": (single[1], double[1]),
    }
    result = {name: (a - b).abs().max().item() for name, (a, b) in pairs.items()}
    for name, difference in result.items():
        print(f"largest difference, {name}: {difference:.1e}", flush=True)
    return result


def side_by_side(
    subjects: Mapping[str, Subject],
    others: Mapping[str, Apart],
    batch: tuple[Tensor, Tensor],
    clock: Clock,
    rounds: int,
) -> dict:
    """{"train": {name: row of describe}, "infer": …}, of subjects and others."""
    result, device = {}, batch[0].device
    kinds = {name: "fp32" for name in others} | {name: subject.kind for name, subject in subjects.items()}
    products = {kind: MatrixProduct(kind, device) for kind in kinds.values()}
    ours = 2 * costs(DFDNet, (10, 1, 64, 64))["multiply_adds"]
    forward = {name: ours for name in kinds} | {"TAU": 2 * costs(OTHERS["TAU"][0], (10, 1, 64, 64))["multiply_adds"]}
    for what, factor in (("train", 3), ("infer", 1)):
        works = {name: lambda o=other, w=what: o.ask(w, *batch) for name, other in others.items()}
        for name, subject in subjects.items():
            works[name] = lambda s=subject, w=what: clock(lambda: getattr(s, w)(*batch))
        beside = {f"product {kind}": lambda p=product: clock(p) for kind, product in products.items()}
        seconds = interleaved(works | beside, rounds)
        result[what] = {}
        for name, kind in kinds.items():
            rates = [products[kind].flops / s for s in seconds[f"product {kind}"]]
            row = describe(seconds[name], {o: seconds[o] for o in others}, len(batch[0]), factor * forward[name], rates)
            result[what][name] = row
            print(
                f"{what} {name:<14} batch {row['batch']}  {row['sequences_per_second']:8.2f} sequences/s  "
                f"{row['times_the_yardstick']:.2f}x yardstick  {row['times_tau']:.2f}x TAU  "
                f"{row['of_matrix_rate']:.0%} of the rate", flush=True,
            )  # fmt: skip
    return result


def describe(
    seconds: list[float], others: Mapping[str, list[float]], batch: int, flops: float, rates: list[float]
) -> dict:
    """Sequences/s, the spread over rounds; ratios to the others and part of the matrix rate, all round by round."""
    median = statistics.median(seconds)
    row = {
        "batch": batch,
        "sequences_per_second": batch / median,
        "spread": [batch / max(seconds), batch / min(seconds)],
    }
    for key, name in (("times_the_yardstick", "yardstick"), ("times_tau", "TAU")):
        ratios = [theirs / s for theirs, s in zip(others[name], seconds)]
        row |= {key: statistics.median(ratios), f"{key}_spread": [min(ratios), max(ratios)]}
    row["of_matrix_rate"] = statistics.median(flops * batch / s / rate for s, rate in zip(seconds, rates))
    return row


def measure_kept(
    subjects: Mapping[str, Subject], others: Mapping[str, Apart], device: torch.device
) -> dict[str, float]:
    """Bytes kept for backward, a sequence; of what a batch needs anyway nothing is counted."""
    (two, future), (three, _) = random_batch(2, device), random_batch(3, device)
    kept = {}
    for kind in ("fp32", "bf16"):
        for name, blocks in (("", False), (" --checkpoint_blocks", True)):
            model = subjects[kind].model.train()
            model.temporal.checkpoint_blocks = blocks
            kept[kind + name] = kept_bytes(model, three, kind == "bf16") - kept_bytes(model, two, kind == "bf16")
            model.temporal.checkpoint_blocks = False
    kept |= {name: other.ask("kept", two, future) for name, other in others.items()}
    for name, count in kept.items():
        print(f"kept for backward, {name}: {count / 2**20:.1f} MiB a sequence", flush=True)
    return kept


def sweep_batches(subject: Subject, sizes: list[int], longest: float, device: torch.device, clock: Clock) -> dict:
    """{"train": {batch size: {"sequences_per_second", "of_matrix_rate"}}, "infer": …}, as long as memory allows and a
    step takes no more than `longest` seconds."""
    forward = 2 * costs(DFDNet, (10, 1, 64, 64))["multiply_adds"]
    product = MatrixProduct(subject.kind, device)
    result: dict = {"train": {}, "infer": {}}
    for size in sizes:
        batch = random_batch(size, device)
        for what, factor in (("train", 3), ("infer", 1)):
            work = getattr(subject, what)
            if not fits(work, *batch):
                return result
            works = {"step": lambda w=work, b=batch: clock(lambda: w(*b)), "product": lambda: clock(product)}
            seconds = interleaved(works, 5)
            parts = [
                factor * forward * size / step * one / product.flops
                for step, one in zip(seconds["step"], seconds["product"])
            ]
            row = {
                "sequences_per_second": size / statistics.median(seconds["step"]),
                "of_matrix_rate": statistics.median(parts),
                "of_matrix_rate_spread": [min(parts), max(parts)],
            }
            result[what][size] = row
            print(
                f"{what} batch {size}: {row['sequences_per_second']:.2f} sequences/s, {row['of_matrix_rate']:.0%} "
                f"({min(parts):.0%} to {max(parts):.0%}) of the rate", flush=True,
            )  # fmt: skip
        if size / result["train"][size]["sequences_per_second"] > longest:
            break
    return result


def fits(work: Callable[..., object], *args: object) -> bool:
    """Whether work(*args) runs in the memory there is."""
    try:
        work(*args)
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        torch.cuda.empty_cache()
        return False
    return True


def measure_preset(name: str, kinds: list[str], device: torch.device, clock: Clock, rates: dict) -> dict:
    """{precision: {"batch", "passes" for a prediction, "train", "infer" in sequences/s, and parts of the rate}}."""
    preset = PRESETS[name]
    flags = {flag: preset.get(flag, False) for flag in MODEL_FLAGS}
    model = DFDNet(**flags)
    frames, _, height, width = flags["out_shape"]
    forward = 2 * costs(lambda: DFDNet(**flags), flags["in_shape"])["multiply_adds"]
    size = preset["batch_size"] if device.type == "cuda" else 4 if name == "digits" else 1
    batch = [torch.rand(size, *flags[shape], device=device) for shape in ("in_shape", "out_shape")]
    result = {}
    for kind in kinds:
        subject = Subject(model, WeightedFrequencyLoss(frames, height, width), kind, device)
        row = {"batch": size, "passes": -(-frames // flags["in_shape"][0])}
        for what, factor in (("train", 3), ("infer", 1)):
            row[what] = size / clock.median(getattr(subject, what), 3, *batch)
            row[f"{what}_of_matrix_rate"] = factor * forward * row[what] / rates[kind]
        result[kind] = row
        print(
            f"{name:<8}{kind}  batch {size}: train {row['train']:.2f}, infer {row['infer']:.2f} sequences/s "
            f"({row['train_of_matrix_rate']:.0%}, {row['infer_of_matrix_rate']:.0%} of the rate)", flush=True,
        )  # fmt: skip
    return result


def ask_for_peak(kind: str, batch: int, device: torch.device) -> int:
    """Peak memory of training, in bytes, of a process of its own: this file with --peak."""
    command = [sys.executable, __file__, "--device", device.type, "--peak", kind, str(batch)]
    found = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
    print(f"peak memory of training, {kind}, batch {batch}: {found / 2**30:.2f} GiB", flush=True)
    return found


def print_peak(device: str, kind: str, batch: int) -> None:
    """That process: three training steps as main.py takes them, compiled where that is the default; bytes on standard
    output."""
    machine = Machine(device, 0, kind, 1, False)
    compile_for = batch if machine.compiles else None
    subject = Subject(DFDNet(), WeightedFrequencyLoss(10, 64, 64), kind, machine.device, compile_for=compile_for)
    for _ in range(3):
        subject.train(*random_batch(batch, machine.device))
    if machine.device.type == "cuda":
        print(torch.cuda.max_memory_allocated())
    else:  # getrusage's peak counts that of the process before exec
        lines = Path("/proc/self/status").read_text().splitlines()
        print(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")))


def read_flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch_size", type=int, help="of the side by side (default: 2 on a CPU, 16 on a GPU)")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--seconds", type=float, default=20, help="leave out batch sizes whose step takes longer")
    parser.add_argument("--presets", nargs="*", default=[name for name in PRESETS if name != "mmnist"])
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: on GPUs")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/speed.json, speed_cuda.json on a GPU")
    parser.add_argument("--peak", nargs=2, metavar=("PRECISION", "BATCH"), help=argparse.SUPPRESS)
    return parser.parse_args()


def run() -> None:
    """Measure, print, write."""
    args = read_flags()
    if args.peak:
        print_peak(args.device, args.peak[0], int(args.peak[1]))
        return
    device = Machine(args.device, 0, "fp32", 1, False).device
    clock, gpu = Clock(device), device.type == "cuda"
    kinds = ["fp32", "tf32", "bf16"] if gpu else ["fp32", "bf16"]
    size = args.batch_size or (16 if gpu else 2)
    machine = measure_machine(device, kinds, clock)
    rates = machine["matrix_flops"]

    torch.manual_seed(1)
    batch, model = random_batch(size, device), DFDNet()
    others = {"yardstick": Apart("yardstick", device, model.state_dict()), "TAU": Apart("TAU", device)}
    compiled = gpu if args.compile is None else args.compile
    subjects, compiling = make_subjects(model, kinds, device, compiled, size)
    deviations = compare_predictions(model.to(device).eval(), others["yardstick"], batch)
    result = {"machine": machine, "compile": compiling, "deviations": deviations}
    result |= side_by_side(subjects, others, batch, clock, args.rounds)
    shipped = "bf16 compiled" if compiling else "bf16"
    rate = result["train"][shipped]["sequences_per_second"]
    result["hours_for_2000_epochs"] = 2000 * 10_000 / rate / 3600
    result["kept_bytes"] = measure_kept(subjects, others, device)
    for other in others.values():
        other.process.terminate()
    result["breakdown"] = {}
    for kind in ("fp32", "bf16"):
        found = breakdown(subjects[kind], *batch, machine, clock, 3)
        result["breakdown"][kind] = found
        print(f"a training step of {size}, {kind}: {found['step'] * 1e3:.0f} ms")
        for part, row in sorted(found["parts"].items(), key=lambda item: -item[1]["seconds"]):
            at = f"arithmetic {row['at_matrix_rate'] * 1e3:6.1f}, bytes {row['at_copy_rate'] * 1e3:6.1f}"
            print(f"  {part:<46}{row['seconds'] * 1e3:8.1f} ms  at the machine's rates: {at}", flush=True)
    found = sweep_batches(subjects[shipped], args.batches, args.seconds, device, clock)
    result["batches"] = {shipped: found}
    subjects.clear()
    result["peak_bytes"] = {kind: ask_for_peak(kind, size, device) for kind in ("fp32", "bf16")}
    result["presets"] = {name: measure_preset(name, kinds, device, clock, rates) for name in args.presets}
    write_result(args.output or RESULTS / ("speed_cuda.json" if gpu else "speed.json"), result, seed=1)


if __name__ == "__main__":
    run()
