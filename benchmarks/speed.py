"""How fast DFDNet trains and predicts, beside a plain DFDNet (plain.py) and beside what the machine can do at all.

    python benchmarks/speed.py [--device cuda] [--rounds 5] [--batches 1 2 4 … 64] [--presets digits kth …]

In one run: the machine's matrix rates and copy bandwidth; training steps (forward, loss, backward, Adam) and
inference of the Moving MNIST model, every precision and the yardstick in turn, round by round, so that drift hits all
alike; batch sizes; presets; bytes kept for backward; peak memory; where the time of a step goes. Inputs are random.
Multiply-adds are counted, a backward pass as two forward ones. The yardstick runs in a process of its own, where
nothing of the product's settings reaches it. Prints tables, and writes benchmarks/results/speed.json (speed_cuda.json).
"""

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import torch
from torch import Tensor, nn

REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO), str(REPO / "benchmarks")]

from plain import PlainDFDNet, PlainLoss  # noqa: E402

from API.device import Machine  # noqa: E402
from API.guard import Guard, gradient_norm  # noqa: E402
from API.presets import PRESETS  # noqa: E402
from API.recorder import environment  # noqa: E402
from API.summary import costs, kept_bytes  # noqa: E402
from core import MODEL_FLAGS  # noqa: E402
from DFDNet import DFDNet, Encoder  # noqa: E402
from TemporalModule import STAU, ThresholdFilter  # noqa: E402
from TemporalModule.temporal import Stem, Unstem  # noqa: E402
from WFL import WeightedFrequencyLoss  # noqa: E402

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}


class Clock:
    """Times a call on a device, its work finished."""

    def __init__(self, device: torch.device) -> None:
        self.wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def __call__(self, work: Callable[[], object]) -> float:
        self.wait()
        began = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - began

    def median(self, work: Callable[..., object], times: int, *args: object) -> float:
        """Of work(*args), after one to warm up."""
        work(*args)
        return statistics.median(self(lambda: work(*args)) for _ in range(times))


@contextmanager
def precision(name: str, device: torch.device) -> Iterator[torch.autocast]:
    """The backends set as --precision sets them; gives the autocast context."""
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = name == "tf32"
    yield torch.autocast(device.type, torch.bfloat16, enabled=name == "bf16")


def measure_machine(device: torch.device, precisions: list[str], clock: Clock) -> dict:
    """Large matrix products, in FLOP/s by precision, and a large copy, in bytes/s read plus written."""
    n = 8192 if device.type == "cuda" else 4096
    rates = {}
    for name in precisions:
        a, b = (torch.randn(n, n, device=device).to(DTYPES[name]) for _ in range(2))
        with precision(name, device):
            rates[name] = 2 * n**3 / clock.median(lambda a=a, b=b: a @ b, 7)
    source = torch.randn(2**28 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    return {"matrix_flops": rates, "copy_bytes": 2 * source.nbytes / clock.median(lambda: target.copy_(source), 7)}


class Apart:
    """A subject in a process of its own, so that what the product sets in its process does not reach it."""

    kind = "fp32"

    def __init__(self, device: torch.device, weights: Mapping[str, Tensor]) -> None:
        context = torch.multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, str(device), dict(weights)), daemon=True)
        self.process.start()
        self.pipe.recv()

    def ask(self, what: str, past: Tensor, future: Tensor) -> float | Tensor:
        """Seconds of one step of "train" or "infer"; for "predict" the prediction, for "kept" bytes."""
        self.pipe.send((what, past.cpu(), future.cpu()))
        return self.pipe.recv()


def serve(pipe, device: str, weights: Mapping[str, Tensor]) -> None:
    """The other end of Apart: a script as one would write it, PyTorch's defaults everywhere."""
    device = torch.device(device)
    plain = Subject("", PlainDFDNet((10, 1, 64, 64)), PlainLoss(10, 64, 64), "fp32", device, plain=True)
    plain.model.load_state_dict(weights)
    clock = Clock(device)
    pipe.send("ready")
    while True:
        try:
            what, *batch = pipe.recv()
        except EOFError:
            return
        past, future = (x.to(device) for x in batch)
        if what == "predict":
            with torch.no_grad():
                pipe.send(plain.model.eval()(past).cpu())
        elif what == "kept":
            pipe.send(kept_bytes(plain.model.train(), past, False) / len(past))
        else:
            pipe.send(clock(lambda w=what, p=past, f=future: getattr(plain, w)(p, f)))


class Subject:
    """A model to time: one training step, one inference."""

    def __init__(
        self, label: str, model: nn.Module, criterion: nn.Module, kind: str, device: torch.device, plain: bool = False
    ) -> None:
        self.label, self.kind, self.device = label, kind, device
        self.model, self.criterion = model.to(device), criterion.to(device)
        parameters = [p for p in model.parameters() if p.requires_grad]
        # The yardstick takes PyTorch's default Adam, as the release does.
        fused = {} if plain or device.type not in ("cpu", "cuda") else {"fused": True}
        self.optimizer = torch.optim.Adam(parameters, lr=1e-5, **fused)

    def train(self, past: Tensor, future: Tensor) -> None:
        self.model.train()
        with precision(self.kind, self.device) as autocast, autocast:
            predicted = self.model(past)
        self.criterion(predicted, future).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def infer(self, past: Tensor, _) -> None:
        self.model.eval()
        with precision(self.kind, self.device) as autocast, autocast:
            self.model(past)


def interleaved(works: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every work, which it returns, one of each a round."""
    for work in works.values():
        work()
        work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            seconds[name].append(work())
    return seconds


def describe(seconds: list[float], baseline: list[float], batch: int, flops: float, rate: float) -> dict:
    """Sequences/s, the spread over rounds, the ratio to the yardstick round by round, the part of the matrix rate."""
    ratios = [b / s for b, s in zip(baseline, seconds)]
    median = statistics.median(seconds)
    return {
        "batch": batch,
        "sequences_per_second": batch / median,
        "spread": [batch / max(seconds), batch / min(seconds)],
        "times_the_yardstick": statistics.median(ratios),
        "times_the_yardstick_spread": [min(ratios), max(ratios)],
        "of_matrix_rate": flops * batch / median / rate,
    }


def breakdown(subject: Subject, past: Tensor, future: Tensor, machine: dict, clock: Clock, times: int) -> dict:
    """Seconds of a training step by part, every call of a module repeated alone on what it gets in the model.

    Beside each: what its multiply-adds take at the machine's matrix rate, and what its inputs, outputs and weights,
    moved once forward and twice backward, take at its copy rate. (Convolutions by Winograd's algorithm may take less.)
    """
    model, kind, device = subject.model.train(), subject.kind, subject.device
    names = {module: name for name, module in model.named_modules()}

    def part_of(module: nn.Module) -> str | None:
        last = names[module].rpartition(".")[2]
        if isinstance(module, Encoder):
            return "encoder"
        if isinstance(module, (Stem, Unstem)):
            return "stems"
        if last in ("reduction", "expansion"):
            return "channel reduction, expansion"
        if last in ("predict_h", "predict_w"):
            return "MLPs"
        if last in ("embed_h", "embed_w", "embed_x"):
            return "recombination products"
        if isinstance(module, STAU):
            return "STAU"
        if isinstance(module, ThresholdFilter):
            return "FFT and filter"
        return "decoder" if names[module] == "decoder" else None

    calls: list[tuple[str, nn.Module, tuple]] = []
    hooks = [
        m.register_forward_hook(lambda m, x, y, part=part: calls.append((part, m, x)))
        for m in model.modules()
        if (part := part_of(m))
    ]
    with torch.no_grad(), precision(kind, device) as autocast, autocast:
        predicted = model(past)
    for hook in hooks:
        hook.remove()
    parts: dict[str, dict[str, float]] = {}

    def add(part: str, seconds: float, multiply_adds: float, moved: float) -> None:
        row = parts.setdefault(part, {"seconds": 0.0, "at_matrix_rate": 0.0, "at_copy_rate": 0.0})
        row["seconds"] += seconds
        row["at_matrix_rate"] += 6 * multiply_adds / machine["matrix_flops"][kind]
        row["at_copy_rate"] += moved / machine["copy_bytes"]

    from torch.utils._pytree import tree_map
    from torch.utils.flop_counter import FlopCounterMode

    def leaves(value: object) -> list[Tensor]:
        return [x for x in torch.utils._pytree.tree_leaves(value) if isinstance(x, Tensor)]

    for part, module, inputs in calls:
        inputs = tree_map(lambda x: x.detach().requires_grad_() if isinstance(x, Tensor) else x, inputs)

        def step(module=module, inputs=inputs) -> list[Tensor]:
            with precision(kind, device) as autocast, autocast:
                outputs = leaves(module(*inputs))
            torch.autograd.backward(outputs, [torch.ones_like(o) for o in outputs])
            module.zero_grad(set_to_none=True)
            return outputs

        with FlopCounterMode(display=False) as counter:
            outputs = step()
        weights = [p for p in module.parameters()]
        moved = 3 * sum(x.nbytes for x in (*leaves(inputs), *outputs, *weights))
        add(part, clock.median(step, times), counter.get_total_flops() / 6, moved)
    error = predicted.float().detach().requires_grad_()
    loss = clock.median(lambda: subject.criterion(error, future).backward(), times)
    add("loss", loss, 0, 6 * error.nbytes)
    for p in subject.optimizer.param_groups[0]["params"]:
        p.grad = torch.zeros_like(p)
    size = sum(p.nbytes for p in model.parameters())
    add("optimizer", clock.median(subject.optimizer.step, times), 0, 7 * size)
    guard = Guard(model, subject.optimizer, "stop", None, "")
    guard.optimizer = copy.copy(subject.optimizer)
    guard.optimizer.step = lambda: None
    scheduler = torch.optim.lr_scheduler.OneCycleLR(copy.copy(subject.optimizer), 1e-5, 10**6)

    def bookkeeping() -> None:
        guard.begin()
        guard.step(0, loss_value, gradient_norm(guard.parameters), ())
        scheduler.step()

    loss_value = torch.ones((), device=device)
    add("schedule, checks, log", clock.median(bookkeeping, times), 0, size)
    subject.optimizer.zero_grad(set_to_none=True)
    step = clock.median(lambda: subject.train(past, future), times)
    rest = step - sum(row["seconds"] for row in parts.values())
    add("the rest: norms, gates, layout, recomputation", rest, 0, 0)
    return {"step": step, "parts": parts}


def peak(device: str, kind: str, batch: int) -> None:
    """In a process of its own: peak memory of three training steps, in bytes, on standard output."""
    machine = Machine(device, 0, kind, 1, False)
    subject = Subject("", DFDNet(), WeightedFrequencyLoss(10, 64, 64), kind, machine.device)
    past, future = (torch.rand(batch, 10, 1, 64, 64, device=machine.device) for _ in range(2))
    for _ in range(3):
        subject.train(past, future)
    if machine.device.type == "cuda":
        print(torch.cuda.max_memory_allocated())
    else:  # getrusage's peak counts that of the process before exec
        lines = Path("/proc/self/status").read_text().splitlines()
        print(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")))


def fits(work: Callable[..., object], *args: object) -> bool:
    """Whether work(*args) runs in the memory there is."""
    try:
        work(*args)
    except (torch.cuda.OutOfMemoryError, RuntimeError) as error:
        if "memory" not in str(error):
            raise
        torch.cuda.empty_cache()
        return False
    return True


def run() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch_size", type=int, help="of the side by side (default: 2 on a CPU, 16 on a GPU)")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--seconds", type=float, default=20, help="leave out batch sizes whose step takes longer")
    parser.add_argument("--presets", nargs="*", default=[name for name in PRESETS if name != "mmnist"])
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: on GPUs")
    parser.add_argument("--peak", nargs=2, metavar=("PRECISION", "BATCH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        peak(args.device, args.peak[0], int(args.peak[1]))
        return
    machine = Machine(args.device, 0, "fp32", 1, False)
    device, clock = machine.device, Clock(machine.device)
    gpu = device.type == "cuda"
    kinds = ["fp32", "tf32", "bf16"] if gpu else ["fp32", "bf16"]
    batch = args.batch_size or (16 if gpu else 2)
    result: dict = {"machine": measure_machine(device, kinds, clock)}
    rates = result["machine"]["matrix_flops"]
    print(f"{device}: " + ", ".join(f"{k} {r / 1e12:.2f} TFLOP/s" for k, r in rates.items()), end=", ")
    print(f"copy {result['machine']['copy_bytes'] / 1e9:.0f} GB/s", flush=True)

    torch.manual_seed(1)
    cost = costs(DFDNet, (10, 1, 64, 64))
    forward = 2 * cost["multiply_adds"]
    past, future = (torch.rand(batch, 10, 1, 64, 64, device=device) for _ in range(2))
    ours = DFDNet()
    plain = Apart(device, ours.state_dict())
    subjects: dict[str, Subject] = {}
    for kind in kinds:
        subjects[kind] = Subject(kind, copy.deepcopy(ours), WeightedFrequencyLoss(10, 64, 64), kind, device)
    if args.compile or (gpu and args.compile is None):
        for kind in kinds:
            model = copy.deepcopy(ours).to(device)
            with precision(kind, device) as autocast:
                said = model.temporal.compile_blocks(lambda autocast=autocast: autocast)
            print(f"{kind}: {said}", flush=True)
            result.setdefault("compile", {})[kind] = said
            subjects[f"{kind} compiled"] = Subject(kind, model, WeightedFrequencyLoss(10, 64, 64), kind, device)
    with torch.no_grad():
        predicted = subjects["fp32"].model.eval()(past).cpu()
    result["deviation_from_yardstick_fp32"] = (plain.ask("predict", past, future) - predicted).abs().max().item()
    for what, factor in (("train", 3), ("infer", 1)):
        works = {"yardstick": lambda w=what: plain.ask(w, past, future)}
        for name, subject in subjects.items():
            works[name] = lambda s=subject, w=what: clock(lambda: getattr(s, w)(past, future))
        rows = {}
        for name, seconds in (every := interleaved(works, args.rounds)).items():
            kind = subjects[name].kind if name in subjects else "fp32"
            rows[name] = describe(seconds, every["yardstick"], batch, factor * forward, rates[kind])
        result[what] = rows
        for name, row in rows.items():
            print(
                f"{what} {name:<14} batch {batch}  {row['sequences_per_second']:8.2f} sequences/s  "
                f"{row['times_the_yardstick']:.2f}x yardstick  {row['of_matrix_rate']:.0%} of the rate", flush=True,
            )  # fmt: skip
    bounded = subjects["bf16 compiled"] if "bf16 compiled" in subjects else subjects["bf16"]
    result["train"]["hours_for_2000_epochs"] = 2000 * 10_000 / result["train"]["bf16"]["sequences_per_second"] / 3600

    result["kept_bytes"] = {}
    for kind in ("fp32", "bf16"):
        for name, block in (("", False), (" --checkpoint_blocks", True)):
            model = subjects[kind].model.train()
            model.temporal.checkpoint_blocks = block
            two, one = (kept_bytes(model, past[:1].repeat(n, 1, 1, 1, 1), kind == "bf16") for n in (3, 2))
            result["kept_bytes"][kind + name] = two - one
            model.temporal.checkpoint_blocks = False
            print(f"kept for backward, {kind}{name}: {(two - one) / 2**20:.1f} MiB a sequence", flush=True)
    result["kept_bytes"]["yardstick"] = plain.ask("kept", past[:2], future[:2])
    plain.process.terminate()
    print(f"kept for backward, yardstick: {result['kept_bytes']['yardstick'] / 2**20:.1f} MiB a sequence", flush=True)

    result["breakdown"] = {}
    for kind in ("fp32", "bf16"):
        found = breakdown(subjects[kind], past, future, result["machine"], clock, 3)
        result["breakdown"][kind] = found
        print(f"a training step of {batch}, {kind}: {found['step'] * 1e3:.0f} ms")
        for part, row in sorted(found["parts"].items(), key=lambda item: -item[1]["seconds"]):
            at = f"arithmetic {row['at_matrix_rate'] * 1e3:6.1f}, bytes {row['at_copy_rate'] * 1e3:6.1f}"
            print(f"  {part:<46}{row['seconds'] * 1e3:8.1f} ms  at the machine's rates: {at}", flush=True)

    result["batches"] = {}
    for size in args.batches:
        past, future = (torch.rand(size, 10, 1, 64, 64, device=device) for _ in range(2))
        for what in ("train", "infer"):
            work = getattr(bounded, what)
            if not fits(work, past, future):
                break
            rate = size / clock.median(work, 3, past, future)
            result["batches"].setdefault(bounded.label, {}).setdefault(what, {})[size] = rate
            print(f"{what} {bounded.label} batch {size}: {rate:.2f} sequences/s", flush=True)
        if size / rate > args.seconds:
            break
    for kind in ("fp32", "bf16"):
        command = [sys.executable, __file__, "--device", device.type, "--peak", kind, str(batch)]
        found = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
        result.setdefault("peak_bytes", {})[kind] = found
        print(f"peak memory of training, {kind}, batch {batch}: {found / 2**30:.2f} GiB", flush=True)
    subjects.clear()

    result["presets"] = {}
    for name in args.presets:
        flags = {flag: PRESETS[name].get(flag, False) for flag in MODEL_FLAGS}
        T, _, H, W = flags["out_shape"]
        model = DFDNet(**flags)
        cost = costs(lambda flags=flags: DFDNet(**flags), flags["in_shape"])
        past, future = (torch.rand(1, *flags[s], device=device) for s in ("in_shape", "out_shape"))
        size = PRESETS[name]["batch_size"] if gpu else 1 + (name == "digits") * 3
        past, future = past.repeat(size, 1, 1, 1, 1), future.repeat(size, 1, 1, 1, 1)
        passes = -(-flags["out_shape"][0] // flags["in_shape"][0])
        for kind in kinds:
            subject = Subject(kind, model, WeightedFrequencyLoss(T, H, W), kind, device)
            row = {"batch": size, "passes": passes}
            for what, factor in (("train", 3), ("infer", 1)):
                seconds = clock.median(getattr(subject, what), 3, past, future)
                row[what] = size / seconds
                row[f"{what}_of_matrix_rate"] = factor * 2 * cost["multiply_adds"] * size / seconds / rates[kind]
            result["presets"].setdefault(name, {})[kind] = row
            print(
                f"{name:<8}{kind}  batch {size}: train {row['train']:.2f}, infer {row['infer']:.2f} sequences/s "
                f"({row['train_of_matrix_rate']:.0%}, {row['infer_of_matrix_rate']:.0%} of the rate)", flush=True,
            )  # fmt: skip
    output = REPO / "benchmarks/results" / ("speed_cuda.json" if gpu else "speed.json")
    output.parent.mkdir(exist_ok=True)
    content = {"date": date.today().isoformat(), "environment": environment(), "seed": 1, **result}
    output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    run()
