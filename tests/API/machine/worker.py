"""What each process of test_distributed.py runs: the command line on a few sequences, or a comparison of its own."""

import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

import torch

torch.set_num_threads(1)

import main  # noqa: E402
from API.datasets import digits  # noqa: E402
from API.evaluation import figures  # noqa: E402
from API.machine.processes import leave, rank, starts  # noqa: E402
from API.machine.sharding import find_fully_shard  # noqa: E402

TINY = dict(in_shape=(4, 1, 32, 32), out_shape=(4, 1, 32, 32), hid_S=8, layer_config=(1, 1, 0, 1))


def command_line(argv: list[str]) -> int:
    """main.py with argv. STOP="step": this sends itself SIGTERM at that step; KILL="step": its last process SIGKILL."""
    digits.SEQUENCES = {"train": 20, "val": 5, "test": 7}
    figures.save_figure = lambda figure, path: path.touch()
    stop, kill, steps = int(os.environ.get("STOP", 0)), int(os.environ.get("KILL", 0)), []
    adam = torch.optim.Adam.step

    def step(self, *args, **kwargs):
        steps.append(1)
        if len(steps) == stop and rank() == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        if len(steps) == kill and rank() == 1 and not starts():
            os.kill(os.getpid(), signal.SIGKILL)
        return adam(self, *args, **kwargs)

    torch.optim.Adam.step = step
    return main.main(argv)


def can_shard() -> bool:
    """Whether this PyTorch has fully_shard."""
    try:
        find_fully_shard()
    except ValueError:
        return False
    return True


def compare(output: str) -> int:
    """Of one step of training: this and the other process on their shares, beside this one alone on all of it."""
    import copy

    from API.dataloader import EpochBatches
    from API.evaluation.metrics import Scores
    from API.machine.distributed import World, synchronise_norms
    from API.machine.sharding import distribute, whole_states, without_exchange
    from API.run.guard import gradient_norm
    from API.speed import accelerate
    from DFDNet import DFDNet
    from WFL import WeightedFrequencyLoss

    world, found = World(torch.device("cpu"), 1.0), {}
    torch.manual_seed(0)
    alone = DFDNet(**TINY).double().train()
    past, future = torch.rand(4, 4, 1, 32, 32).double(), torch.rand(4, 4, 1, 32, 32).double()
    criterion = WeightedFrequencyLoss(4, 32, 32).double()

    def step(model, forward, past, future, parts=1):
        loss = 0.0
        for i, (x, y) in enumerate(zip(past.chunk(parts), future.chunk(parts))):
            with without_exchange(forward, skip=i < parts - 1):
                part = criterion(forward(x), y) / parts
                part.backward()
            loss = loss + part.detach()
        grads = {n: p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad.clone()
                 for n, p in model.named_parameters() if p.grad is not None}  # fmt: skip
        return loss, grads, gradient_norm(model.parameters())

    expected = step(copy_of := copy.deepcopy(alone), copy_of, past, future)
    statistics = {n: b.clone() for n, b in copy_of.named_buffers()}

    def agree(failed: bool) -> bool:
        return world.any(failed)[0]

    def distance(one, other) -> float:
        norm = sum(value.double().square().sum() for value in other.values()).sqrt()
        return (sum((one[n] - other[n]).double().square().sum() for n in other).sqrt() / norm).item()

    ways = {"copies": {}, "compiled copies": {}, "compressed": dict(compress=True)}
    ways |= {way: dict(shard=True) for way in ("shards", "compiled shards") if can_shard()}
    for way, options in ways.items():
        model, said = copy.deepcopy(alone), []
        if way.startswith("compiled"):
            torch.set_default_dtype(torch.float64)  # of what it is tried out with
            said = accelerate(
                model, [model.temporal.stem_first], compile=True, example=past[:2], backend="aot_eager", agree=agree
            )
            torch.set_default_dtype(torch.float32)
        synchronise_norms(model)
        options = dict(shard=False, compress=False) | options
        forward = distribute(model, world, torch.device("cpu"), model.blocks(), **options)
        loss, grads, norm = step(model, forward, world.share(past), world.share(future))
        found[way] = {
            "loss": (world.sum(loss) / world.size / expected[0] - 1).abs().item(),
            "gradients": distance(grads, expected[1]),
            "norm": (norm / expected[2] - 1).abs().item(),
            "statistics": distance(dict(model.named_buffers()), statistics),
            "warned": float(any(line.startswith("warning") for line in said)),
        }
        if way == "shards":
            optimizer = torch.optim.Adam(model.parameters(), lr=0.1, fused=True)
            optimizer.step()
            whole = whole_states(model, optimizer)
            plain = torch.optim.Adam(copy_of.parameters(), lr=0.1)
            plain.step()
            found["states"] = {
                "model": distance(whole["model"], copy_of.state_dict()),
                "moments": max(
                    distance(moment, plain.state_dict()["state"][i])
                    for i, moment in whole["optimizer"]["state"].items()
                ),
            }
    parts = step(again := copy.deepcopy(alone).eval(), again, past, future)[1]  # BatchNorm off: accumulation is exact
    model = copy.deepcopy(alone).eval()
    forward = distribute(model, world, torch.device("cpu"), [], False, False)
    accumulated = step(model, forward, world.share(past), world.share(future), parts=2)
    found["accumulated"] = distance(accumulated[1], parts)

    scores = Scores()
    frames = torch.rand(7, 2, 3, 1, 16, 16)
    for i in world.share(range(7)):
        scores.update(frames[i : i + 1, 0], frames[i : i + 1, 1])
    all_of_them = Scores()
    all_of_them.update(frames[:, 0], frames[:, 1])
    joint, single = scores.summary(world.join)["strict"], all_of_them.summary()["strict"]
    found["scores"] = max(abs(joint[m][k] - single[m][k]) for m in single for k in ("mean", "standard_error"))
    found["worst"] = all(joint[m]["worst"] == single[m]["worst"] for m in single)
    shares = [None] * world.size
    batches = EpochBatches(range(23), 6, True, 5, world)
    torch.distributed.all_gather_object(shares, list(batches))
    found["batches"] = [[i for part in parts for i in part] for parts in zip(*shares)] == list(
        EpochBatches(range(23), 6, True, 5)
    )
    torch.distributed.all_gather_object(shares, list(EpochBatches(range(23), 6, False, 5, world)))
    found["test_set"] = [i for own in shares for batch in own for i in batch] == list(range(23))
    found["any"] = world.any(rank() == 1, False)
    if world.main:
        Path(output).write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    code = compare(sys.argv[2]) if sys.argv[1] == "--compare" else command_line(sys.argv[1:])
    leave(code, well=code in (0, 75))
