"""Build, train, validate, test: what main.py's modes do. The loops receive what they use and return numbers."""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace as Config

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from API import visualize
from API.compare import compare as compare_runs
from API.dataloader import SPLITS, load_data
from API.device import Machine, Progress
from API.evaluation import evaluate
from API.explain import draw_filters
from API.export import write_export
from API.interrupt import Interrupted, StopSignals
from API.lpips import find_lpips
from API.metrics import Scores
from API.predict import Predictor, Request
from API.predict import predict as predict_clips
from API.recorder import (
    Recorder,
    SaveEvery,
    describe_epoch,
    load_checkpoint,
    random_states,
    refuse_changed_flags,
    restore_random_states,
    save_checkpoint,
)
from API.report import report
from API.summary import cost_table, costs
from DFDNet import DFDNet, check_sizes, infer_release_args, read_release
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
    "stage", "block",
)  # fmt: skip


# Setting up ---------------------------------------------------------------------------------------------------------


def build_model(config: Config) -> DFDNet:
    """The model of the flags."""
    return DFDNet(**{flag: getattr(config, flag) for flag in MODEL_FLAGS})


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
    optimizer = torch.optim.Adam(parameters, lr=config.lr, fused=parameters[0].device.type in ("cuda", "cpu"))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=config.lr, total_steps=config.epochs * steps_an_epoch, final_div_factor=1e4
    )
    return optimizer, scheduler


def prepare(config: Config) -> Machine:
    """The device and precision of the flags; the random generators are seeded."""
    return Machine(config.device, config.gpu, config.precision, config.seed, config.deterministic)


def settle_flags(defaults: Mapping, given: Mapping, checkpoint: str | None) -> tuple[Config, Mapping | None]:
    """Flags that are given win over a checkpoint's own, and those over the defaults: (flags, the checkpoint's state).

    Raises ValueError where the checkpoint does not load, or is the authors' and --release is not given.
    """
    if checkpoint is None:
        return Config(**{**defaults, **given}), None
    state = load_checkpoint(Path(checkpoint))
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


class Training:
    """The moving parts of a run, and where it stands: whole epochs done, steps done of the next, their total loss."""

    def __init__(self, model: DFDNet, config: Config, steps_an_epoch: int) -> None:
        self.model, self.config = model, config
        self.optimizer, self.scheduler = build_optimizer(model, config, steps_an_epoch)
        self.epoch, self.step, self.total, self.best = 0, 0, 0.0, math.inf

    def checkpoint(self) -> dict:
        """All that going on from here needs, as tensors and plain values."""
        parts = {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "scheduler")}
        place = {name: getattr(self, name) for name in ("epoch", "step", "total", "best")}
        return {**parts, **place, "random": random_states(), "config": vars(self.config)}

    def restore(self, state: Mapping) -> None:
        """Go on from a checkpoint. Raises ValueError where it does not fit."""
        load_weights(self.model, self.config, state, "--resume")
        try:
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            restore_random_states(state["random"])
            self.epoch, self.step, self.total, self.best = (state[n] for n in ("epoch", "step", "total", "best"))
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"--resume: the checkpoint holds no run to go on with ({error})") from None


def train(config: Config, state: Mapping | None = None) -> None:
    """Train, validate every log_step epochs, then test the best checkpoint. state: of the checkpoint to resume from.

    Raises Interrupted, all saved, after a signal to stop.
    """
    machine = prepare(config)
    check_sizes(**{flag: getattr(config, flag) for flag in MODEL_FLAGS if flag != "release"})
    if state is not None:
        refuse_changed_flags(vars(config), state["config"], RUN_FLAGS)
    loaders = build_loaders(config, machine, ("train", "val", "test"))  # all: a missing test set shows up now
    model = build_model(config)
    if config.init and state is None:
        model = load_weights(model, config, load_checkpoint(config.init), config.init)
    training = Training(model.to(machine.device), config, len(loaders["train"]))
    if state is not None:
        training.restore(state)
    recorder = Recorder(Path(config.res_dir) / config.ex_name, state is not None, config.overwrite)
    recorder.forget_after(training.epoch)
    recorder.write_config({**vars(config), "device": str(machine.device), "precision": machine.precision})
    if config.compile:
        model.temporal.compile_blocks()
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    run = f"epochs {training.epoch + 1} to {config.epochs} of {len(loaders['train'])} steps of {config.batch_size}"
    recorder.log(f"{config.dataname}: {parameters:.2f} M parameters, {run}, on {machine}: {recorder.folder}")
    train_epochs(training, loaders, machine, recorder)
    visualize.training_curves(recorder.history(), recorder.figures / "training.png")
    path = recorder.checkpoints / "best.pth"
    load_weights(model, config, load_checkpoint(path), str(path))
    evaluate(model, loaders["test"], machine, recorder, **test_options(config, machine, path))


def train_epochs(training: Training, loaders: Mapping[str, DataLoader], machine: Machine, recorder: Recorder) -> None:
    """The epochs that are left; recorded, validated and saved."""
    config, batches = training.config, loaders["train"].batch_sampler
    criterion = build_criterion(config).to(machine.device)
    board, last = visualize.Board(recorder.folder, training.epoch), recorder.checkpoints / "last.pth"
    due = SaveEvery(config.save_every)
    with StopSignals() as stop:

        def after_step(step: int, total: Tensor, check: Callable[[], None]) -> None:
            if stop.asked or due(step):
                check()  # a model that has met a loss that is not finite is not saved
                training.step, training.total = step, total.item()
                save_checkpoint(last, training.checkpoint())
            if stop.asked:
                raise Interrupted(f"stopped in epoch {training.epoch + 1}, step {step}; go on with --resume")

        while training.epoch < config.epochs:
            epoch = training.epoch + 1
            title = f"epoch {epoch}/{config.epochs}"
            batches.epoch, batches.start = epoch - 1, training.step
            record = {"epoch": epoch} | train_one_epoch(
                training.model, criterion, loaders["train"], training.optimizer, training.scheduler, machine,
                config.grad_clip, title, training.step, training.total, after_step,
            )  # fmt: skip
            if checked := epoch % config.log_step == 0 or epoch == config.epochs:
                scores, example = validate(training.model, criterion, loaders["val"], machine)
                record |= scores
                board.picture(epoch, *example)
            training.epoch, training.step, training.total = epoch, 0, 0.0
            if checked:
                is_best, training.best = record["val_mse"] < training.best, min(training.best, record["val_mse"])
            recorder.epoch(record)
            board.scalars(epoch, record)
            recorder.log(f"{title}  {describe_epoch(record)}")
            if checked:
                kept = training.checkpoint()
                if is_best:
                    save_checkpoint(recorder.checkpoints / "best.pth", kept)
                save_checkpoint(last, kept)
            if stop.asked:
                raise Interrupted(f"stopped after epoch {epoch}; go on with --resume")
    board.close()


def train_one_epoch(
    model: nn.Module,
    criterion: nn.Module,
    loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    machine: Machine,
    grad_clip: float | None = None,
    title: str = "training",
    step: int = 0,
    total: float = 0.0,
    after_step: Callable[[int, Tensor, Callable[[], None]], None] | None = None,
) -> dict[str, float]:
    """One pass: {"train_loss", "lr", "seconds", "sequences_per_second", "waiting" (share of time waiting for data)}.

    step, total: steps done before, which the loader skips, and the sum of their losses. after_step is called after
    every step with the steps done, the sum of losses, and a function that raises where one was not finite.
    Raises ValueError at a loss that is not finite, with its epoch and step.
    """
    model.train()
    total = torch.tensor(total, device=machine.device)
    # The first step whose loss is not finite; read now and then, not each step.
    bad_step = torch.full((), -1, device=machine.device)
    sequences, waited, began = 0, 0.0, time.perf_counter()
    progress = Progress(len(loader), title)

    def check() -> None:
        if (bad := int(bad_step)) >= 0:
            raise ValueError(
                f"{title}, step {bad + 1}: the loss is not finite; lower --lr, set --grad_clip 1 or use --precision "
                "fp32. The last good checkpoint is kept"
            )

    batches, mark = iter(loader), time.perf_counter()
    while (batch := next(batches, None)) is not None:
        past, future = machine.move(batch)  # (B, T, C, H, W), (B, T_out, C_out, H, W)
        waited += time.perf_counter() - mark
        with machine.autocast():
            predicted = model(past)
        loss = criterion(predicted, future)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if grad_clip:
            nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
        optimizer.step()
        scheduler.step()  # one-cycle: every step, not every epoch
        loss = loss.detach()
        total += loss
        bad_step = torch.where((bad_step < 0) & ~loss.isfinite(), step, bad_step)
        step += 1
        sequences += len(past)
        if progress.due():
            check()
            progress.show(step, f"loss {loss.item():.1f}  lr {scheduler.get_last_lr()[0]:.2g}", sequences)
        if after_step:
            after_step(step, total, check)
        mark = time.perf_counter()
    progress.close()
    check()
    seconds = time.perf_counter() - began
    return {
        "train_loss": total.item() / step,
        "lr": scheduler.get_last_lr()[0],
        "seconds": seconds,
        "sequences_per_second": sequences / seconds,
        "waiting": waited / seconds,
    }


@torch.no_grad()
def validate(
    model: nn.Module,
    criterion: nn.Module,
    loader: DataLoader,
    machine: Machine,
) -> tuple[dict, tuple[Tensor, Tensor, Tensor]]:
    """One pass over the validation set: ({"val_loss", "val_mse", …}, a sequence: past, future, predicted)."""
    model.eval()
    scores, total, count, example, removed = Scores(), torch.zeros((), device=machine.device), 0, None, {}
    for batch in loader:
        past, future = machine.move(batch)
        if example is None:
            with filter_statistics(model) as removed, machine.autocast():
                predicted = model(past)
            example = past[0], future[0], predicted[0]
        else:
            with machine.autocast():
                predicted = model(past)
        total += criterion(predicted, future) * len(past)
        count += len(past)
        scores.update(predicted, future)
    record = {"val_loss": total.item() / count}
    record |= {f"val_{metric}": result["mean"] for metric, result in scores.summary()["strict"].items()}
    return record | {"filter": filter_report(model, removed)}, example


# Using a checkpoint -------------------------------------------------------------------------------------------------


def trained(config: Config, state: Mapping) -> tuple[Machine, DFDNet]:
    """The checkpoint's model, ready to predict."""
    machine = prepare(config)
    model = load_weights(build_model(config), config, state, config.ckpt).to(machine.device).eval()
    if config.compile:
        model.temporal.compile_blocks()
    return machine, model


def load_predictor(checkpoint: str | Path, device: str = "auto", precision: str = "auto") -> Predictor:
    """For notebooks: load_predictor("best.pth")(video, frames=20) -> the next 20 frames, an array as video is one."""
    config, state = settle_flags({}, {}, str(checkpoint))
    machine = Machine(device, 0, precision, config.seed, False)
    model = load_weights(build_model(config), config, state, str(checkpoint)).to(machine.device).eval()
    return Predictor(model.predict_once, config.in_shape, config.out_shape, machine)


def test(config: Config, state: Mapping) -> None:
    """Score a checkpoint on the test set, beside baselines."""
    machine, model = trained(config, state)
    loader = build_loaders(config, machine, ("test",))["test"]
    recorder = Recorder(Path(config.res_dir) / config.ex_name, enter=True)
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
    machine, model = trained(config, state)
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
    _, model = trained(config, state)
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
    visualize.contact_sheet(datasets, recorder.figures / "data.png")
    recorder.log(f"samples of each split: {recorder.figures / 'data.png'}")


def summary(config: Config) -> None:
    """Print the model, and what it costs."""
    model = build_model(config)
    cost = costs(lambda: build_model(config), config.in_shape, config.precision == "bf16")
    print(model, cost_table(model, cost, config.batch_size), sep="\n")
