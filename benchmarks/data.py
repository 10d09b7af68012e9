"""Can the data keep up? Sequences per second from every loader, and the share of training time spent waiting for data.

    python benchmarks/data.py                       all sets, two training steps each
    python benchmarks/data.py --train_steps 0       loaders only

Frames are noise of the preset's size, decoded clips in the cache as after a first run; what is timed is the product's
own loader and its own training loop. Prints a table and writes benchmarks/results/data.json.
"""

import argparse
import gzip
import itertools
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import core
import main
from API.dataloader import load_data
from API.presets import PRESETS
from API.run.guard import Guard
from API.run.state import TrainingState
from benchmarks.record import RESULTS, write_result

# (row, loader it goes through, in_shape, out_shape). Video sets are read alike once they are in the cache.
ROWS = [
    ("64x64 10->10 from cache", "video", [10, 1, 64, 64], [10, 1, 64, 64]),
    ("128x128 10->20 from cache", "video", [10, 1, 128, 128], [20, 1, 128, 128]),
    *((name, {"kth": "video", "human": "video", "sjtu4k": "video"}.get(name, name), p["in_shape"], p["out_shape"])
      for name, p in PRESETS.items()),
]  # fmt: skip


def make_data(root: Path, name: str, in_shape: list[int], out_shape: list[int]) -> Path:
    """A --data_root for the loader `name`, with noise in it."""
    rng = np.random.default_rng(0)
    if name == "mmnist":
        (root / "moving_mnist").mkdir(parents=True)
        header = np.array([2051, 10_000, 28, 28], dtype=">i4").tobytes()
        with gzip.open(root / "moving_mnist/train-images-idx3-ubyte.gz", "wb", compresslevel=1) as file:
            file.write(header + rng.integers(0, 256, 10_000 * 784, dtype=np.uint8).tobytes())
        np.save(root / "moving_mnist/mnist_test_seq.npy", rng.integers(0, 256, (20, 100, 64, 64), dtype=np.uint8))
    elif name == "taxibj":
        (root / "taxibj").mkdir(parents=True)
        shape = (2000, 4, 2, 32, 32)
        np.savez(
            root / "taxibj/dataset.npz",
            **{n: rng.uniform(-1, 1, shape).astype(np.float32) for n in ("X_train", "Y_train", "X_test", "Y_test")},
        )
    elif name == "video":
        root.mkdir(parents=True)
        T, C, H, W = in_shape
        length = T + out_shape[0]
        frames = length * max(3, 2**27 // (C * H * W * length * 10))  # 10 clips of 128 MiB in all
        for k in range(10):
            np.save(root / f"{k}.npy", rng.integers(0, 256, (frames, H, W, C), dtype=np.uint8))
    return root


def stride(loader_name: str) -> int | None:
    """Windows from every frame on, of clips: others have none."""
    return 1 if loader_name == "video" else None


def read(loader, seconds: float, epoch: int) -> float:
    """Sequences a second, counted from the second batch on."""
    loader.batch_sampler.epoch = epoch
    count, began = 0, None
    while True:
        for past, _ in loader:
            if began is None:
                began = time.perf_counter()
            else:
                count += len(past)
            if time.perf_counter() - began > seconds and count:
                return count / (time.perf_counter() - began)
        loader.batch_sampler.epoch += 1


def waiting(
    name: str, loader_name: str, root: Path, steps: int, batch_size: int | None, device: str
) -> dict[str, float]:
    """The training loop's own account, over `steps` steps of the preset."""
    mode, defaults, given = main.parse(["--dataname", name, "--device", device])
    config = SimpleNamespace(**defaults | given, mode=mode)
    config.data_root, config.dataname, config.stride = str(root), loader_name, stride(loader_name)
    config.batch_size = batch_size or config.batch_size
    machine = core.prepare(config)
    model = core.build_model(config).to(machine.device)
    core.speed_up(model, config, machine, config.batch_size)
    loader = core.build_loaders(config, machine, ("train",))["train"]
    optimizer, scheduler = core.build_optimizer(model, config, len(loader))
    criterion = core.build_criterion(config).to(machine.device)
    batches = iter(loader)

    class Few:
        """The next so many batches."""

        def __init__(self, count: int) -> None:
            self.count = count

        def __len__(self) -> int:
            return self.count

        def __iter__(self):
            return itertools.islice(batches, self.count)

    def epoch(count: int) -> dict[str, float]:
        guard = Guard(model, optimizer, "stop", None, name)
        with TrainingState(model, optimizer, scheduler, vars(config), machine.world).save_in(root) as run:
            return core.train_one_epoch(model, criterion, Few(count), run, guard, machine)

    epoch(1)  # workers have started, and the model is warm
    record = epoch(steps)
    return {"waiting": record["waiting"], "seconds_a_step": record["seconds"] / steps}


def run() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.5, help="per measurement; three of each, interleaved")
    parser.add_argument(
        "--train_steps", type=int, default=2, help="steps of each preset timed for its share of waiting"
    )
    parser.add_argument(
        "--train_batch", type=int, help="batch of those steps where the preset's does not fit the memory"
    )
    parser.add_argument("--device", default="auto", help="where those steps compute")
    parser.add_argument("--only", nargs="+", help="rows to measure")
    parser.add_argument("--output", type=Path, default=RESULTS / "data.json")
    args = parser.parse_args()
    rows = []
    for row, name, in_shape, out_shape in ROWS:
        if args.only and row not in args.only:
            continue
        batch_size = PRESETS.get(row, PRESETS["mmnist"])["batch_size"]
        with tempfile.TemporaryDirectory() as folder:
            root = make_data(Path(folder) / "data", name, in_shape, out_shape)
            loaders = {
                workers: load_data(
                    name, data_root=root, in_shape=in_shape, out_shape=out_shape, batch_size=batch_size,
                    val_batch_size=batch_size, num_workers=workers, splits=("train",), stride=stride(name),
                )["train"]
                for workers in (0, 1, 2)
            }  # fmt: skip
            rates = {workers: [] for workers in loaders}
            for epoch in range(3):
                for workers, loader in loaders.items():
                    rates[workers].append(read(loader, args.seconds, epoch))
            result = {"row": row, "in_shape": in_shape, "out_shape": out_shape, "batch_size": batch_size}
            result["sequences_per_second"] = {w: statistics.median(r) for w, r in rates.items()}
            result["spread"] = {w: [min(r), max(r)] for w, r in rates.items()}
            result["microseconds_a_sequence"] = 1e6 / result["sequences_per_second"][0]
            del loaders
            if args.train_steps and row in PRESETS:
                result |= waiting(row, name, root, args.train_steps, args.train_batch, args.device)
        rows.append(result)
        speeds = "  ".join(f"{w}: {rate:8,.0f}/s" for w, rate in result["sequences_per_second"].items())
        wait = (
            f"  waiting {result['waiting']:.2%} of {result['seconds_a_step']:.2f} s a step"
            if "waiting" in result
            else ""
        )
        print(f"{row:<28}{speeds}  {result['microseconds_a_sequence']:7.0f} us{wait}", flush=True)
    write_result(args.output, rows, seed=0)


if __name__ == "__main__":
    run()
