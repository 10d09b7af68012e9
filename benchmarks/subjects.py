"""What benchmarks/speed.py times: the product's model in every precision, and others in processes of their own."""

import copy
import functools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from benchmarks.plain import PlainDFDNet, PlainLoss
from torch import Tensor, nn

from API.evaluation.summary import kept_bytes
from API.speed.inference import ready_to_predict
from benchmarks.tau import TAU, TAULoss

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}
# What the product is compared with, and how it is trained.
OTHERS = {
    "yardstick": (lambda: PlainDFDNet((10, 1, 64, 64)), lambda: PlainLoss(10, 64, 64)),
    "TAU": (lambda: TAU(10, 1), TAULoss),
}


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


class MatrixProduct:
    """A large one, to tell what rate the machine has."""

    def __init__(self, kind: str, device: torch.device) -> None:
        n = 8192 if device.type == "cuda" else 4096
        self.kind, self.device, self.flops = kind, device, 2 * n**3
        self.a, self.b = (torch.randn(n, n, device=device).to(DTYPES[kind]) for _ in range(2))

    def __call__(self) -> None:
        with precision(self.kind, self.device):
            self.a @ self.b


class Subject:
    """A model to time: one training step, one inference.

    compile_for: compiled, to train and to predict, for so many sequences.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        kind: str,
        device: torch.device,
        plain: bool = False,
        compile_for: int | None = None,
    ) -> None:
        self.kind, self.device, self.plain, self.compile_for = kind, device, plain, compile_for
        self.model, self.criterion = model.to(device), criterion.to(device)
        parameters = [p for p in model.parameters() if p.requires_grad]
        # The others take PyTorch's default Adam, as their authors do.
        fused = {} if plain or device.type not in ("cpu", "cuda") else {"fused": True}
        self.optimizer = torch.optim.Adam(parameters, lr=1e-5, **fused)
        self.said = self.compile(self.model)

    def compile(self, model: nn.Module) -> str:
        """model compiled, if it is to be; what that said."""
        if not self.compile_for:
            return ""
        with precision(self.kind, self.device) as autocast:
            return model.compile_blocks(self.compile_for, lambda: autocast)

    @functools.cached_property
    def predictor(self) -> nn.Module:
        """The model as main.py predicts with it: another one, that does not learn. The others predict as they are."""
        if self.plain:
            return self.model
        model = ready_to_predict(copy.deepcopy(self.model), self.kind)
        self.compile(model)
        return model

    def train(self, past: Tensor, future: Tensor) -> None:
        self.model.train()
        with precision(self.kind, self.device) as autocast, autocast:
            predicted = self.model(past)
        self.criterion(predicted, future).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def infer(self, past: Tensor, _) -> None:
        model = self.predictor.eval()
        with precision(self.kind, self.device) as autocast, autocast:
            model(past)


class Apart:
    """One of OTHERS in a process of its own, so that what the product sets in its process does not reach it."""

    def __init__(self, name: str, device: torch.device, weights: Mapping[str, Tensor] | None = None) -> None:
        context = torch.multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        weights = None if weights is None else dict(weights)
        self.process = context.Process(target=serve, args=(theirs, name, str(device), weights), daemon=True)
        self.process.start()
        self.pipe.recv()

    def ask(self, what: str, past: Tensor, future: Tensor) -> float | Tensor:
        """Seconds of a "train" or "infer" step; the prediction for "predict", as precise as past; bytes for "kept"."""
        self.pipe.send((what, past.cpu(), future.cpu()))
        return self.pipe.recv()


def serve(pipe, name: str, device: str, weights: Mapping[str, Tensor] | None) -> None:
    """The other end of Apart: a script as one would write it, PyTorch's defaults everywhere."""
    device = torch.device(device)
    make, make_loss = OTHERS[name]
    plain = Subject(make(), make_loss(), "fp32", device, plain=True)
    if weights is not None:
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
                pipe.send(plain.model.eval().to(past.dtype)(past).cpu())
            plain.model.float()
        elif what == "kept":
            pipe.send(kept_bytes(plain.model.train(), past, False) / len(past))
        else:
            pipe.send(clock(lambda w=what, p=past, f=future: getattr(plain, w)(p, f)))


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
