"""Build, train, validate, test: what main.py's modes do. The loops receive what they use and return numbers."""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace as Config
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from API.dataloader import SPLITS, load_data
from API.datasets.report import report
from API.deploy.export import write_export
from API.deploy.predict import Predictor, Request
from API.deploy.predict import predict as predict_clips
from API.evaluation import figures
from API.evaluation.compare import compare as compare_runs
from API.evaluation.explain import draw_filters
from API.evaluation.lpips import find_lpips
from API.evaluation.metrics import Scores
from API.evaluation.summary import cost_table, costs
from API.evaluation.test_set import evaluate
from API.machine.device import Machine, choose_device, choose_precision, free_memory
from API.machine.distributed import synchronise_norms
from API.machine.sharding import distribute, gathered, restore_states, whole_states, without_exchange
from API.run.checkpoint import (
    SaveEvery,
    Saver,
    load_checkpoint,
    random_states,
    refuse_changed_flags,
    restore_random_states,
)
from API.run.guard import Guard, gradient_norm
from API.run.interrupt import Interrupted, StopSignals
from API.run.progress import Progress
from API.run.recorder import Recorder, Silent, describe_epoch
from API.run.release import infer_release_args, read_release
from DFDNet import DFDNet, check_sizes
from TemporalModule.watch import FILTER_MODES, filter_report, filter_statistics, filters_as, spectra
from WFL import WeightedFrequencyLoss

MODEL_FLAGS = (
    "in_shape", "out_shape", "hid_S", "layer", "kernel_size", "COF", "groups", "layer_config", "release", "segments",
)  # fmt: skip
# What must not change under a run: the model, and all that its numbers hang on.
RUN_FLAGS = (*MODEL_FLAGS, "dataname", "epochs", "lr", "batch_size", "seed", "resize", "stride", "split_by")

# Passed on to the data set.
DATA_FLAGS = ("cache_dir", "no_cache", "skip_bad", "resize", "stride", "split_by", "yuv_size", "yuv_depth")
# What belongs to one call of main.py, and is not taken over from the checkpoint of an earlier one.
CALL_FLAGS = (
    "mode", "ckpt", "init", "res_dir", "ex_name", "resume", "overwrite", "device", "gpu", "save_predictions",
    "protocol", "lpips", "lpips_weights", "runs", "input", "output", "frames", "start", "every", "side_by_side",
    "stage", "block", "timeout", "compile", "accumulate", "checkpoint_blocks", "shard", "compress_gradients",
)  # fmt: skip


# Setting up ---------------------------------------------------------------------------------------------------------


def build_model(config: Config) -> DFDNet:
    """The model of the flags."""
    model = DFDNet(**{flag: getattr(config, flag) for flag in MODEL_FLAGS})
    model.temporal.checkpoint_blocks = getattr(config, "checkpoint_blocks", False)
    return model


def build_criterion(config: Config) -> WeightedFrequencyLoss:
    """The loss for the frames that the model predicts."""
    frames, _, height, width = config.out_shape
    return WeightedFrequencyLoss(frames, height, width, config.release)


def build_loaders(config: Config, machine: Machine, splits: tuple[str, ...]) -> dict[str, DataLoader]:
    """The data of the flags; a line for every clip that --skip_bad leaves out."""
    loaders = load_data(
        config.dataname,
        data_root=config.data_root,
        in_shape=config.in_shape,
        out_shape=config.out_shape,
        batch_size=config.batch_size,
        val_batch_size=config.val_batch_size,
        num_workers=config.num_workers,
        seed=config.seed,
        pin_memory=machine.device.type == "cuda",
        world=machine.world,
        splits=splits,
        **{flag: getattr(config, flag) for flag in DATA_FLAGS},
    )
    skipped = (reason for loader in loaders.values() for reason in getattr(loader.dataset, "skipped", ()))
    for reason in dict.fromkeys(skipped) if config.mode != "data" else ():  # the report lists them itself
        print(f"left out: {reason}", flush=True)
    return loaders


def build_optimizer(
    model: nn.Module, config: Config, steps_an_epoch: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Adam, and a one-cycle schedule over all steps of the run. The model is on its device already."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(
        parameters, lr=config.lr, fused=not config.shard and parameters[0].device.type in ("cuda", "cpu")
    )
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=config.lr, total_steps=config.epochs * steps_an_epoch, final_div_factor=1e4
    )
    return optimizer, scheduler


def prepare(config: Config) -> Machine:
    """The device and precision of the flags; the random generators are seeded."""
    return Machine(config.device, config.gpu, config.precision, config.seed, config.deterministic, config.timeout)


def recorder_of(machine: Machine) -> type:
    """What writes the run folder: of many processes, the first one only."""
    return Recorder if machine.world.main else Silent


def settle_flags(
    defaults: Mapping, given: Mapping, checkpoint: str | Path | None, state: Mapping | None = None
) -> tuple[Config, Mapping | None]:
    """Flags that are given win over a checkpoint's own, and those over the defaults: (flags, the checkpoint's state).

    state: the checkpoint's, where it is at hand.
    Raises ValueError where the checkpoint does not load, or is the authors' and --release is not given.
    """
    if checkpoint is None:
        return Config(**{**defaults, **given}), None
    state = load_checkpoint(Path(checkpoint)) if state is None else state
    if isinstance(state.get("config"), Mapping):
        known = {flag: value for flag, value in state["config"].items() if flag not in CALL_FLAGS}
        return Config(**{**defaults, **known, **given}), state
    if not given.get("release"):
        raise ValueError(
            f"{checkpoint}: holds no flags of ours; if it is one of the authors' checkpoints, add --release"
        )
    try:
        inferred = infer_release_args(read_release(state))
    except ValueError as error:
        raise ValueError(f"{checkpoint}: {error}") from None
    return Config(**{**defaults, **inferred, **given}), state


def load_weights(model: DFDNet, config: Config, state: Mapping, path: str) -> DFDNet:
    """The model with a checkpoint's weights, ours or the authors'. Raises ValueError where they do not fit."""
    try:
        if "config" in state:
            model.load_state_dict(state["model"])
            return model
        return DFDNet.from_release(state, **{flag: getattr(config, flag) for flag in MODEL_FLAGS})
    except (KeyError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()
        reason = reason[1 if len(reason) > 1 else 0].strip()  # load_state_dict lists every name: the first will do
        raise ValueError(f"{path}: does not fit the model of these flags: {reason}") from None


# Training -----------------------------------------------------------------------------------------------------------


PLACE = ("epoch", "step", "total", "skipped", "best")


class Training:
    """The moving parts of a run, and where it stands: whole epochs done, steps done of the next, their total
    loss and how many of them were skipped; the best validation error."""

    def __init__(self, model: DFDNet, config: Config, machine: Machine, steps_an_epoch: int) -> None:
        self.model, self.config, self.machine = model, config, machine
        blocks = [block for stage in model.temporal.stages for block in stage]
        # What a training step calls: the model itself, or with many processes what keeps its copies alike.
        self.forward = distribute(model, machine.world, machine.device, blocks, config.shard, config.compress_gradients)
        self.optimizer, self.scheduler = build_optimizer(model, config, steps_an_epoch)
        self.epoch, self.step, self.total, self.skipped, self.best = 0, 0, 0.0, 0, math.inf

    def checkpoint(self) -> dict:
        """All that going on from here needs, as tensors and plain values; with --shard, every process must ask."""
        parts = whole_states(self.model, self.optimizer) | {"scheduler": self.scheduler.state_dict()}
        place = {name: getattr(self, name) for name in PLACE}
        return {**parts, **place, "random": random_states(), "config": vars(self.config)}

    def restore(self, state: Mapping) -> None:
        """Go on from a checkpoint. Raises ValueError where it does not fit."""
        try:
            restore_states(self.model, self.optimizer, state)
            self.scheduler.load_state_dict(state["scheduler"])
            restore_random_states(state["random"])
            for name in PLACE:
                setattr(self, name, state[name])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"--resume: the checkpoint holds no run to go on with ({reason})") from None


def train(config: Config, state: Mapping | None = None) -> None:
    """Train, validate every log_step epochs, then test the best checkpoint. state: of the checkpoint to resume from.

    Raises Interrupted, all saved, after a signal to stop.
    """
    machine = prepare(config)
    check_sizes(**{flag: getattr(config, flag) for flag in MODEL_FLAGS if flag != "release"})
    at_once = sequences_at_once(config, machine.world.size)
    if state is not None:
        refuse_changed_flags(vars(config), state["config"], RUN_FLAGS)
    loaders = build_loaders(config, machine, ("train", "val", "test"))  # all: a missing test set shows up now
    model = build_model(config)
    if config.init and state is None:
        model = load_weights(model, config, load_checkpoint(config.init), config.init)
    if machine.world.size > 1:
        model = synchronise_norms(model, machine.device)
    model, compiled = model.to(machine.device), None
    if machine.compiles if config.compile is None else config.compile:  # before --shard, which takes weights apart
        compiled = model.compile_blocks(at_once, machine.autocast)
    training = Training(model, config, machine, len(loaders["train"]))
    if state is not None:
        training.restore(state)
    recorder = recorder_of(machine)(Path(config.res_dir) / config.ex_name, state is not None, config.overwrite)
    recorder.forget_after(training.epoch)
    recorder.write_config({**vars(config), "device": str(machine.device), "precision": machine.precision})
    if compiled:
        recorder.log(compiled)
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    what = f"epochs {training.epoch + 1} to {config.epochs} of {len(loaders['train'])} steps of {config.batch_size}"
    recorder.log(f"{config.dataname}: {parameters:.2f} M parameters, {what}, on {machine}: {recorder.folder}")
    train_epochs(training, loaders, recorder)
    if machine.world.main:
        figures.training_curves(recorder.history(), recorder.figures / "training.png")
    path = Path(config.res_dir) / config.ex_name / "checkpoints/best.pth"
    model = machine.to_predict(load_weights(build_model(config), config, load_checkpoint(path), str(path)))
    evaluate(model, loaders["test"], machine, recorder, **test_options(config, machine, path))


def sequences_at_once(config: Config, processes: int) -> int:
    """How many sequences a process computes at once. Raises ValueError where a batch does not divide among the
    processes, or their part of it into --accumulate."""
    if config.batch_size % processes:
        raise ValueError(
            f"--batch_size {config.batch_size}: is for all {processes} processes together, and must divide"
        )
    if config.batch_size // processes % config.accumulate:
        share = f"the {config.batch_size // processes} sequences that a process has of --batch_size {config.batch_size}"
        raise ValueError(f"--accumulate {config.accumulate}: must divide {share}")
    return config.batch_size // processes // config.accumulate


def train_epochs(training: Training, loaders: Mapping[str, DataLoader], recorder: Recorder) -> None:
    """The epochs that are left; recorded, validated and saved."""
    config, machine, batches = training.config, training.machine, loaders["train"].batch_sampler
    world = machine.world
    criterion = build_criterion(config).to(machine.device)
    board = figures.Board(recorder.folder, training.epoch) if world.main else None
    last, best = recorder.checkpoints / "last.pth", recorder.checkpoints / "best.pth"
    due = SaveEvery(config.save_every)
    with StopSignals() as stop, Saver(world.main) as saver:

        def leave(where: str) -> NoReturn:
            saver.wait()
            world.wait()  # nobody leaves before all is saved
            raise Interrupted(f"stopped {where}; go on with --resume")

        def after_step(step: int, total: Tensor, guard: Guard) -> None:
            stopping, saving = world.any(stop.asked, world.main and due(step))
            if stopping or saving:
                guard.look()  # what has met a loss that is not finite is not saved
                training.step, training.total, training.skipped = step, total.item(), int(guard.skipped)
                saver.save(training.checkpoint(), last)
            if stopping:
                leave(f"in epoch {training.epoch + 1}, step {step}")

        while training.epoch < config.epochs:
            epoch = training.epoch + 1
            title = f"epoch {epoch}/{config.epochs}"
            batches.epoch, batches.start = epoch - 1, training.step
            guard = Guard(training.model, training.optimizer, config.on_nonfinite, recorder.bad_batch, title)
            guard.skipped += training.skipped
            record = {"epoch": epoch} | train_one_epoch(
                training.forward, criterion, loaders["train"], training.scheduler, machine, guard, config.grad_clip,
                config.accumulate, training.step, training.total, after_step,
            )  # fmt: skip
            if checked := epoch % config.log_step == 0 or epoch == config.epochs:
                with gathered(training.forward):
                    scores, example = validate(training.model, criterion, loaders["val"], machine)
                record |= scores
            training.epoch, training.step, training.total, training.skipped = epoch, 0, 0.0, 0
            if checked:
                is_best, training.best = record["val_mse"] < training.best, min(training.best, record["val_mse"])
            recorder.epoch(record)
            recorder.log(f"{title}  {describe_epoch(record)}")
            if board:
                board.scalars(epoch, record)
                if checked:
                    board.picture(epoch, *example)
            (stopping,) = world.any(stop.asked)
            if checked or stopping:
                saver.save(training.checkpoint(), *([best, last] if checked and is_best else [last]))
            if stopping:
                leave(f"after epoch {epoch}")
    world.wait()  # best.pth is written
    if board:
        board.close()


def train_one_epoch(
    model: nn.Module,
    criterion: nn.Module,
    loader: DataLoader,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    machine: Machine,
    guard: Guard,
    grad_clip: float | None = None,
    accumulate: int = 1,
    step: int = 0,
    total: float = 0.0,
    after_step: Callable[[int, Tensor, Guard], None] | None = None,
) -> dict[str, float]:
    """One pass: {"train_loss", "lr", "seconds", "sequences_per_second", "waiting" (share of time waiting for data),
    "skipped" (steps not taken, as loss or gradient was not finite)}.

    guard holds the optimizer and takes its steps. accumulate: a batch is computed in so many parts. step, total: steps
    done before, which the loader skips, and the sum of their losses. after_step is called after every step with the
    steps done and the sum of losses. Raises ValueError at a loss or gradient that is not finite, unless guard skips.
    """
    model.train()
    world, title = machine.world, guard.title
    total = torch.tensor(total, device=machine.device)
    sequences, waited, began = 0, 0.0, time.perf_counter()
    progress = Progress(len(loader), title, world.main)
    batches, mark = iter(loader), time.perf_counter()
    while (batch := next(batches, None)) is not None:
        batch = machine.move(batch)
        waited += time.perf_counter() - mark
        guard.begin()
        guard.optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=machine.device)
        parts = list(zip(*(x.chunk(accumulate) for x in batch)))
        for past, future in parts:  # (B, T, C, H, W), (B, T_out, C_out, H, W)
            with without_exchange(model, skip=past is not parts[-1][0]):
                with machine.autocast():
                    predicted = model(past)
                part = criterion(predicted, future) / len(parts)
                part.backward()
            loss += part.detach()
        loss = world.sum(loss) / world.size
        norm = gradient_norm(guard.parameters, grad_clip)
        total += guard.step(step, loss, norm, batch)
        scheduler.step()  # one-cycle: every step, not every epoch
        step += 1
        sequences += len(batch[0]) * world.size
        if progress.due():
            progress.show(step, f"loss {loss.item():.1f}  lr {scheduler.get_last_lr()[0]:.2g}", sequences)
            machine.crowding.look()
        if after_step:
            after_step(step, total, guard)
        mark = time.perf_counter()
    progress.close()
    guard.look()
    seconds = time.perf_counter() - began
    skipped = int(guard.skipped)
    return {
        "train_loss": total.item() / max(step - skipped, 1),
        "lr": scheduler.get_last_lr()[0],
        "seconds": seconds,
        "sequences_per_second": sequences / seconds,
        "waiting": waited / seconds,
    } | ({"skipped": skipped} if skipped else {})


@torch.no_grad()
def validate(
    model: nn.Module,
    criterion: nn.Module,
    loader: DataLoader,
    machine: Machine,
) -> tuple[dict, tuple[Tensor, Tensor, Tensor] | None]:
    """One pass over the validation set: ({"val_loss", "val_mse", …}, a sequence: past, future, predicted).

    Each of many processes computes its share; the numbers are of the whole.
    """
    model.eval()
    world = machine.world
    scores, losses, example, removed = Scores(), [], None, {}
    for batch in loader:
        past, future = machine.move(batch)
        if example is None:
            with filter_statistics(model) as removed, machine.autocast():
                predicted = model(past)
            example = past[0], future[0], predicted[0]
        else:
            with machine.autocast():
                predicted = model(past)
        losses.append(torch.stack([criterion(predicted, future) * len(past), past.new_tensor(len(past))]))
        scores.update(predicted, future)
    total, count = world.sum(torch.stack(losses).cpu().double().sum(0)).tolist()  # there is no float64 on MPS
    record = {"val_loss": total / count}
    record |= {f"val_{metric}": result["mean"] for metric, result in scores.summary(world.join)["strict"].items()}
    return record | {"filter": filter_report(model, removed)}, example


# Using a checkpoint -------------------------------------------------------------------------------------------------


def trained(config: Config, state: Mapping, exact: bool = False) -> tuple[Machine, DFDNet]:
    """The checkpoint's model, to predict with; exact: with its weights as they are, whatever the precision."""
    machine = prepare(config)
    model = load_weights(build_model(config), config, state, config.ckpt)
    model = model.to(machine.device).eval() if exact else machine.to_predict(model)
    if config.compile:  # asked for: for a few batches it takes longer than it saves
        print(model.compile_blocks(config.val_batch_size, machine.autocast))
    return machine, model


def load_predictor(checkpoint: str | Path, device: str = "auto", precision: str = "auto") -> Predictor:
    """For notebooks: load_predictor("best.pth")(video, frames=20) -> the next 20 frames, an array as video is one."""
    config, state = settle_flags({}, {}, str(checkpoint))
    machine = Machine(device, 0, precision, config.seed, False)
    model = machine.to_predict(load_weights(build_model(config), config, state, str(checkpoint)))
    return Predictor(model.predict_once, config.in_shape, config.out_shape, machine)


def test(config: Config, state: Mapping) -> None:
    """Score a checkpoint on the test set, beside baselines."""
    machine, model = trained(config, state)
    loader = build_loaders(config, machine, ("test",))["test"]
    recorder = recorder_of(machine)(Path(config.res_dir) / config.ex_name, enter=True)
    evaluate(model, loader, machine, recorder, **test_options(config, machine, config.ckpt))


def test_options(config: Config, machine: Machine, checkpoint: str | Path) -> dict:
    """What evaluate measures, keeps, and says about it."""
    return {
        "about": {"dataname": config.dataname, "checkpoint": str(checkpoint), "release": config.release},
        "protocols": config.protocol,
        "lpips": find_lpips(config.lpips, config.lpips_weights, machine.device),
        "save_predictions": config.save_predictions,
    }


def predict(config: Config, state: Mapping) -> None:
    """Predict frames of the user's videos."""
    machine, model = trained(config, state)
    predictor = Predictor(model.predict_once, config.in_shape, config.out_shape, machine)
    frames = config.frames or predictor.reach
    request = Request(config.input, config.output, frames, config.start, config.every, config.side_by_side)
    print(predict_clips(request, predictor))


@torch.no_grad()
def explain(config: Config, state: Mapping) -> None:
    """Draw what the filters do to the first test sequences, and predict with and without them."""
    machine, model = trained(config, state, exact=True)
    past, future = machine.move(next(iter(build_loaders(config, machine, ("test",))["test"])))
    recorder = Recorder(Path(config.res_dir) / config.ex_name, enter=True)
    predicted = {}
    for mode in FILTER_MODES:
        with filters_as(model, mode), machine.autocast():
            predicted[mode] = model(past).float()
    recorder.log(draw_filters(spectra(model, past), past, future, predicted, recorder, config.stage, config.block))


def export(config: Config, state: Mapping) -> None:
    """Write the model for other programs, checked against it."""
    config.device = "cpu"
    _, model = trained(config, state, exact=True)
    print(write_export(model, config.in_shape, vars(config), Path(config.output), model.temporal.use_matrices))


# Without one --------------------------------------------------------------------------------------------------------


def compare(config: Config) -> None:
    """Put runs side by side."""
    print(compare_runs(config.runs, config.protocol, Path(config.res_dir) / (config.ex_name or "comparison")))


def data(config: Config) -> None:
    """Read the data set as training would, say what is in it, and draw samples."""
    config.skip_bad = True  # the report names them all
    datasets = {split: loader.dataset for split, loader in build_loaders(config, prepare(config), SPLITS).items()}
    recorder = Recorder(Path(config.res_dir) / config.ex_name, enter=True)
    recorder.log(report(config.dataname, datasets))
    figures.contact_sheet(datasets, recorder.figures / "data.png")
    recorder.log(f"samples of each split: {recorder.figures / 'data.png'}")


def summary(config: Config) -> None:
    """Print the model, what it costs, and whether this machine has the memory to train it."""
    at_once, device = sequences_at_once(config, 1), choose_device(config.device, config.gpu)
    model = build_model(config)
    bfloat16 = choose_precision(config.precision, device) == "bf16"
    cost = costs(lambda: build_model(config), config.in_shape, bfloat16)
    print(model, cost_table(model, cost, at_once, free_memory(device)), sep="\n")
