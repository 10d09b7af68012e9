"""How long it takes until the first compiled training step of the Moving MNIST model in bfloat16 can begin.

    TORCHINDUCTOR_CACHE_DIR=/tmp/cache python benchmarks/compiling.py [--device cuda]

The first time with an empty cache, the second time with a full one. Writes benchmarks/results/compiling.json.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from API.speed import accelerate
from benchmarks.record import RESULTS, check_device, write_result
from DFDNet import DFDNet


def run() -> None:
    """Measure, print, write. Exit code 1 where it does not compile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--toy", action="store_true", help="a small model, and no code is generated")
    parser.add_argument("--output", type=Path, default=RESULTS / "compiling.json")
    args = parser.parse_args()
    check_device(parser, args.device)
    shape = (4, 1, 32, 32) if args.toy else (10, 1, 64, 64)
    model = DFDNet(shape, shape, hid_S=4, layer_config=(0, 1, 0, 0)) if args.toy else DFDNet()
    model, example = model.to(args.device), torch.rand(args.batch_size, *shape).to(args.device)
    began = time.perf_counter()
    lines = accelerate(
        model, model.blocks(), compile=True, example=example, backend="aot_eager" if args.toy else "inductor",
        autocast=lambda: torch.autocast(args.device, torch.bfloat16),
    )  # fmt: skip
    seconds = time.perf_counter() - began
    print(*lines, f"{seconds:.1f} s", sep="\n")
    if any(line.startswith("warning") for line in lines):
        sys.exit(1)
    write_result(args.output, {"seconds": seconds, "blocks": len(model.blocks())}, seed=0)


if __name__ == "__main__":
    run()
