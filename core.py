"""Build, accelerate, train, validate, test: what main.py's modes do. Loops receive what they use and return numbers."""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace as Config

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from API import UserError
from API.dataloader import SPLITS, build_loaders, how_to_fit, settle_data
from API.datasets.report import report
from API.datasets.splits import check_splits, settle_splits, write_manifest
from API.deploy.arrays import ArrayPredictor, predict_arrays
from API.deploy.export import check_export, halve, write_export
from API.deploy.predict import Predictor, Request, predict_clips
from API.evaluation import figures
from API.evaluation.compare import compare_runs
from API.evaluation.explain import draw_filters
from API.evaluation.loggers import Loggers
from API.evaluation.lpips import find_lpips
from API.evaluation.metrics import Scores, check_frame
from API.evaluation.summary import cost_table, costs
from API.evaluation.test_set import evaluate
from API.machine.device import Machine, choose_device, choose_precision, free_memory, prepare
from API.machine.distributed import synchronise_norms
from API.machine.sharding import distribute, gathered, without_exchange
from API.run.checkpoint import load_checkpoint, random_states, restore_random_states
from API.run.flags import (
    ARRAY_FLAGS,
    FIXED_FLAGS,
    describe_changes,
    refuse_changed_flags,
    sequences_at_once,
    settle_flags,
)
from API.run.guard import Guard, gradient_norm
from API.run.pace import Pace
from API.run.progress import follow
from API.run.recorder import Recorder, describe_epoch, recorder_of, run_of
from API.run.release import convert_release, infer_release_args, is_release, load_weights, read_release
from API.run.state import TrainingState
from API.run.weights import as_checkpoint, load_fitting
from API.speed import accelerate
from API.speed.graphs import Graphed
from API.speed.inference import prepare_inference
from DFDNet import DFDNet, check_sizes, strides
from TemporalModule.watch import (
    FILTER_MODES,
    filter_report,
    filter_statistics,
    filters_as,
    filters_of,
    spectra,
    threshold_groups,
)
from WFL import WeightedFrequencyLoss

MODEL_FLAGS = tuple(inspect.signature(DFDNet).parameters)


# Setting up ---------------------------------------------------------------------------------------------------------


def build_model(config: Config) -> DFDNet:
    """The model of the flags. Raises UserError, naming the flag, where sizes do not fit together."""
    arguments = {name: getattr(config, name) for name in MODEL_FLAGS}
    try:
        check_sizes(**arguments)
    except ValueError as error:
        raise UserError(str(error)) from None
    return DFDNet(**arguments)


def build_criterion(config: Config) -> WeightedFrequencyLoss:
    """The loss for the frames that the model predicts."""
    frames, _, height, width = config.out_shape
    return WeightedFrequencyLoss(frames, height, width, config.release)


def build_optimizer(
    model: nn.Module, config: Config, steps_an_epoch: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Adam, and a one-cycle schedule over all steps of the run. The model is on its device already."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    fused = all(p.device.type in ("cuda", "cpu") and p.is_floating_point() for p in parameters)  # not of complex ones
    optimizer = torch.optim.Adam(parameters, lr=config.lr, fused=fused)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=config.lr, total_steps=config.epochs * steps_an_epoch, final_div_factor=1e4
    )
    return optimizer, scheduler


def load_release(checkpoint: str | Path | Mapping, *, release: bool = True, **model_args) -> DFDNet:
    """A model with the weights of the authors' released code.

    checkpoint: a path or a mapping; a bare state dict or one under 'net'. The shapes in it tell all arguments of DFDNet
    but COF and out_shape's T; model_args overrides. release=False starts a model of the default mode from these
    weights: the one LayerNorm of a branch is copied to both, and the thresholds can learn from where they are.

    Raises: UserError with the first name that is missing, left over or of another shape.
    """
    state = read_release(checkpoint)
    model = DFDNet(**infer_release_args(state) | model_args, release=release)
    model.load_state_dict(convert_release(state, model))
    return model


def start_from(model: DFDNet, config: Config) -> str:
    """Give the model the weights of --init that fit; says which. Raises UserError where too few do."""
    weights = as_checkpoint(load_checkpoint(config.init), config.init)["model"]
    if is_release(weights):
        try:
            weights = load_release(config.init, release=config.release).state_dict()
        except UserError as error:
            raise UserError(f"--init {config.init}: {error}") from None
    told = load_fitting(model, weights, config.init)
    with torch.no_grad():
        for module in filters_of(model).values():
            module.start.copy_(module.threshold)  # how far thresholds move is counted from here on
    return told


# Training -----------------------------------------------------------------------------------------------------------


def train(config: Config, state: Mapping | None = None) -> None:
    """Train, validate every log_step epochs, then test the best checkpoint. state: of the checkpoint to resume from.

    Raises Interrupted, everything saved, after a signal to stop.
    """
    machine = prepare(config)
    settle_data(config, math.prod(strides(config.layer)))
    model = build_model(config)
    at_once = sequences_at_once(config, machine.world.size)
    if state is not None:
        refuse_changed_flags(vars(config), state["config"] or {}, (*MODEL_FLAGS, *FIXED_FLAGS))
    loaders = build_loaders(config, machine, SPLITS)  # all of them: a missing test set shows up now
    folder, datasets = Path(config.res_dir) / config.ex_name, {name: data.dataset for name, data in loaders.items()}
    earlier = folder if state is not None else run_of(Path(config.init)) if config.init else None
    clips, told = settle_splits(earlier, datasets)
    told += describe_changes(vars(config), (state or {}).get("config") or {})
    best = folder / "checkpoints/best.pth"
    frame = config.out_shape[2:]
    check_frame(*frame)
    lpips = find_lpips(config.lpips, config.lpips_weights, machine.device, frame)  # missing weights show up now, too
    if config.init and state is None:
        told.append(start_from(model, config))
    model = model.to(machine.device)
    applied = speed_up(model, config, machine, at_once)
    if machine.world.size > 1:
        synchronise_norms(model)
    # What a training step calls: the model itself, or with many processes what keeps its copies alike.
    forward = distribute(model, machine.world, machine.device, model.blocks(), config.shard, config.compress_gradients)
    optimizer, scheduler = build_optimizer(model, config, len(loaders["train"]))
    run = TrainingState(model, optimizer, scheduler, vars(config), machine.world, config.save_every)
    if state is not None:
        run.restore(state)
    with recorder_of(machine.world.main)(folder, state is not None, config.overwrite) as recorder:
        recorder.forget_after(run.epoch)
        recorder.write_config({**vars(config), "device": str(machine.device), "precision": machine.precision})
        if machine.world.main:
            write_manifest(recorder.folder, clips)
        resumed = [f"resumed after epoch {run.epoch} and {run.step} steps of the next one"] if state is not None else []
        for line in (*resumed, *applied, *told):
            recorder.log(line)
        parameters = sum(p.numel() for p in model.parameters()) / 1e6
        what = f"epochs {run.epoch + 1} to {config.epochs} of {len(loaders['train'])} steps of {config.batch_size}"
        recorder.log(f"{config.dataname}: {parameters:.2f} M parameters, {what}, on {machine}: {recorder.folder}")
        logs, scale = config.logger if machine.world.main else (), getattr(datasets["val"], "scale", None)
        with Loggers(logs, recorder.folder, run.epoch, vars(config), scale) as loggers:
            with run.save_in(recorder.checkpoints):
                train_epochs(forward, loaders, run, config, machine, recorder, loggers)
                config.ckpt = best
                model = trained(config, load_checkpoint(best), machine)
                tested = score(model, loaders["test"], config, machine, recorder, lpips, run.leave_test)
            loggers.results(tested)
        if machine.world.main:
            figures.training_curves(recorder.history(), recorder.figures / "training.png")


def speed_up(model: DFDNet, config: Config, machine: Machine, at_once: int) -> list[str]:
    """Accelerate the model for training as the flags say, nothing with --plain; a line for each thing applied."""
    if config.plain:
        return []
    return accelerate(
        model,
        model.blocks(),
        recompute=config.checkpoint_blocks,
        compile=machine.compiles if config.compile is None else config.compile,
        example=example(config, machine, at_once),
        autocast=machine.autocast,
        agree=lambda failed: machine.world.any(failed)[0],
    )


def example(config: Config, machine: Machine, sequences: int) -> Tensor:
    """Past frames (sequences, T, C, H, W) of noise, to try a model with. No other random number depends on it."""
    return torch.rand(sequences, *config.in_shape, generator=torch.Generator().manual_seed(0)).to(machine.device)


def train_epochs(
    forward: nn.Module,
    loaders: Mapping[str, DataLoader],
    run: TrainingState,
    config: Config,
    machine: Machine,
    recorder: Recorder,
    loggers: Loggers,
) -> None:
    """The epochs that are left; recorded, validated and saved."""
    criterion, batches = build_criterion(config).to(machine.device), loaders["train"].batch_sampler
    if any(parameter.requires_grad for parameter in criterion.parameters()):
        raise ValueError("the loss has parameters to learn: the optimizer and checkpoints hold the model's alone")
    log_once = functools.cache(recorder.log)
    graphed = functools.partial(Graphed, model=run.model, tell=log_once) if config.graphs else None
    while run.epoch < config.epochs:
        epoch = run.epoch + 1
        title = f"epoch {epoch}/{config.epochs}"
        batches.epoch, batches.start = run.epoch, run.step
        guard = Guard(run.model, run.optimizer, config.on_nonfinite, recorder.bad_batch, title, run.skipped)
        record = {"epoch": epoch} | train_one_epoch(
            forward, criterion, loaders["train"], run, guard, machine, config.grad_clip, config.accumulate, graphed
        )
        shown = None
        if epoch % config.log_step == 0 or epoch == config.epochs:
            with gathered(forward):
                scores, shown = validate(run.model, criterion, loaders["val"], machine, run.lr_squares)
            record |= scores
        recorder.epoch(record)
        recorder.log(f"{title}  {describe_epoch(record)}")
        loggers.epoch(epoch, record, shown)
        run.after_epoch(record.get("val_mse"))
    run.finish()


def train_one_epoch(
    model: nn.Module,
    criterion: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    run: TrainingState,
    guard: Guard,
    machine: Machine,
    grad_clip: float | None = None,
    accumulate: int = 1,
    graphed: Callable[[Callable[..., Tensor]], Callable[..., Tensor]] | None = None,
) -> dict[str, float]:
    """One pass: {"train_loss", "lr", "seconds", "sequences_per_second", "waiting" (share of time waiting for data),
    "skipped" (steps not taken, as loss or gradient was not finite)}.

    run: optimizer and schedule, and the steps done before, which the loader leaves out. guard: judges every step.
    accumulate: a batch is computed in so many parts. graphed: makes a CUDA graph of forward, loss and backward, another
    one every epoch. Nothing in a step waits for a GPU.
    Raises UserError at a loss or gradient that is not finite, unless guard skips.
    """
    model.train()
    optimizer, scheduler, world = run.optimizer, run.scheduler, machine.world
    pace = Pace(loader, machine, guard.title, run.step)
    groups = threshold_groups(run.model, optimizer)
    total = torch.tensor(run.total, device=machine.device)

    def forward_backward(past: Tensor, future: Tensor) -> Tensor:
        """(B, T, C, H, W), (B, T_out, C_out, H, W) -> the loss; its gradient is added to the parameters'."""
        loss = torch.zeros((), device=machine.device)
        parts, whole = list(zip(past.chunk(accumulate), future.chunk(accumulate))), len(past)
        for past, future in parts:
            with without_exchange(model, skip=past is not parts[-1][0]):
                with machine.autocast():
                    predicted = model(past)
                part = criterion(predicted.to(future.dtype), future) * (len(past) / whole)
                part.backward()
            loss += part.detach()
        return loss

    compute = graphed(forward_backward) if graphed else forward_backward
    for batch in pace:
        guard.begin()
        optimizer.zero_grad(set_to_none=True)
        loss = compute(*batch)
        loss = world.sum(loss) / world.size
        norm = gradient_norm(guard.parameters, grad_clip)
        if guard.passes(pace.step, loss, norm, batch):
            optimizer.step()
        rates = scheduler.get_last_lr()  # of this step
        run.lr = rates[0]
        run.lr_squares += rates[groups[0]] ** 2 if len(groups) == 1 else math.nan
        scheduler.step()  # one-cycle: every step, not every epoch
        total += guard.loss
        pace.show(len(batch[0]), loss, run.lr)
        run.after_step(pace.step + 1, total.item, guard)
    guard.look()
    skipped = int(guard.skipped)
    record = {"train_loss": total.item() / max(pace.step - skipped, 1), "lr": run.lr} | pace.report()
    return record | ({"skipped": skipped} if skipped else {})


@torch.no_grad()
def validate(
    model: nn.Module, criterion: nn.Module, loader: DataLoader, machine: Machine, lr_squares: float = math.nan
) -> tuple[dict, tuple[Tensor, Tensor, Tensor] | None]:
    """One pass over the validation set: ({"val_loss", "val_mse", …}, a sequence: past, future, predicted).

    lr_squares: as of filter_report. Each of many processes computes its share; the numbers are of the whole.
    """
    model.eval()
    world = machine.world
    scores, losses, count, shown, notes = Scores(), [], 0, None, {}
    for batch in follow(loader, "validation", world.main):
        past, future = machine.move(batch)
        with nullcontext(notes) if shown else filter_statistics(model) as notes, machine.autocast():  # the first batch
            predicted = model(past)
        shown = shown or (past[0], future[0], predicted[0])
        losses.append(criterion(predicted.to(future.dtype), future) * len(past))
        count += len(past)
        scores.update(predicted, future)
    total = torch.stack(losses).cpu().double().sum()  # on the CPU: there is no float64 on MPS
    total, count = world.sum(torch.stack([total, torch.tensor(count, dtype=total.dtype)])).tolist()
    record = {"val_loss": total / count}
    record |= {f"val_{metric}": result["mean"] for metric, result in scores.summary(world.join)["strict"].items()}
    return record | {"filter": filter_report(model, notes, lr_squares)}, shown


# Using a checkpoint -------------------------------------------------------------------------------------------------


def trained(config: Config, state: Mapping, machine: Machine, exact: bool = False) -> DFDNet:
    """The checkpoint's model on its device, prepared for inference only; exact: as it is, as with --plain."""
    model = load_weights(build_model(config), state, config.ckpt).to(machine.device).eval()
    if exact or config.plain:
        return model
    prepare_inference(model, example(config, machine, 1), machine.precision)
    if config.compile and config.mode != "train":  # only if asked for: for a few batches it takes longer than it saves
        some = example(config, machine, config.val_batch_size)
        print(*accelerate(model, model.blocks(), compile=True, example=some, autocast=machine.autocast), sep="\n")
    if config.graphs:
        model.predict_once = Graphed(model.predict_once, model, print)
    return model


def load_predictor(
    checkpoint: str | Path, device: str = "auto", precision: str | None = None, gpu: int = 0
) -> Predictor:
    """For notebooks: load_predictor("best.pth")(video, frames=20) -> the next 20 frames, an array as video is one.

    device, precision, gpu: as the flags; precision None is the checkpoint's. Random generators stay as they are.
    """
    given = dict(ckpt=checkpoint, mode="predict", device=device, gpu=gpu, timeout=10.0)
    given |= {} if precision is None else {"precision": precision}
    defaults = {name: flag.default for name, flag in inspect.signature(DFDNet).parameters.items()}
    defaults |= dict.fromkeys(("deterministic", "plain", "compile", "graphs"), False)  # as main.py has them
    defaults |= dict(seed=1, dataname="mmnist", precision="auto")
    before = random_states()
    predictor = predictor_of(*settle_flags(defaults, given, checkpoint))
    restore_random_states(before)
    return predictor


def predictor_of(config: Config, state: Mapping) -> Predictor:
    """The checkpoint's model, for frames that are made to fit as its data set does."""
    machine = prepare(config)
    resize, interpolation = how_to_fit(config.dataname, getattr(config, "resize", None))
    model = trained(config, state, machine)
    kind = ArrayPredictor.of(config) if config.dataname == "arrays" else Predictor
    return kind(model, config.in_shape, config.out_shape, machine, resize, interpolation)


def test(config: Config, state: Mapping) -> None:
    """Score a checkpoint on the test set, beside baselines."""
    machine = prepare(config)
    settle_data(config, math.prod(strides(config.layer)))
    model = trained(config, state, machine)
    loader = build_loaders(config, machine, ("test",))["test"]
    told = check_splits(run_of(Path(config.ckpt)), {"test": loader.dataset})
    recorder = recorder_of(machine.world.main)(Path(config.res_dir) / config.ex_name, enter=True)
    for line in told:
        recorder.log(line)
    lpips = find_lpips(config.lpips, config.lpips_weights, machine.device, config.out_shape[2:])
    score(model, loader, config, machine, recorder, lpips)


def score(
    model: nn.Module,
    loader: DataLoader,
    config: Config,
    machine: Machine,
    recorder: Recorder,
    lpips: Callable | None,
    after_batch: Callable[[], object] = lambda: None,
) -> dict:
    """Measure what the flags ask for, and write it into the run folder."""
    flags = ("dataname", "data_root", "in_shape", "out_shape", "resize", "stride", "split_by", "noise")
    about = {flag: getattr(config, flag) for flag in flags}
    about |= {flag: value for flag in ARRAY_FLAGS if (value := getattr(config, flag, None)) is not None}
    about |= {"split": "test", "checkpoint": str(config.ckpt)}
    about["model_flags"] = {flag: getattr(config, flag) for flag in MODEL_FLAGS if not flag.endswith("_shape")}
    return evaluate(
        model, loader, machine, recorder, about, config.protocol, lpips, config.save_predictions, after_batch
    )


def predict(config: Config, state: Mapping) -> None:
    """Predict frames of the user's videos."""
    predictor = predictor_of(config, state)
    request = Request(**{field.name: getattr(config, field.name, None) for field in dataclasses.fields(Request)})
    for line in (predict_arrays if config.dataname == "arrays" else predict_clips)(request, predictor):
        print(line, flush=True)


@torch.no_grad()
def explain(config: Config, state: Mapping) -> None:
    """Draw what the filters do to the first test sequences, and predict with and without them."""
    machine = prepare(config)
    model = trained(config, state, machine, exact=True)
    past, future = machine.move(next(iter(build_loaders(config, machine, ("test",))["test"])))
    predicted = {}
    for mode in FILTER_MODES:
        with filters_as(model, mode), machine.autocast():
            predicted[mode] = model(past).float()
    with filter_statistics(model) as notes, machine.autocast():
        found = spectra(model, past)
    stages = filter_report(model, notes, state.get("lr_squares", math.nan))
    recorder = Recorder(Path(config.res_dir) / config.ex_name, enter=True)
    told = draw_filters(found, stages, past, future, predicted, recorder, config.ckpt, config.stage, config.block)
    recorder.log(told)


def export(config: Config, state: Mapping) -> None:
    """Write the model for other programs, checked against it."""
    check_export(config.output)
    model = load_weights(build_model(config), state, config.ckpt)
    if config.half:
        halve(model, config.output)
    print(write_export(model, config.in_shape, vars(config), config.output))


def compare(config: Config) -> None:
    """Put runs side by side."""
    folder = Path(config.res_dir) / (config.ex_name or "comparison")
    print(compare_runs(config.runs, config.protocol, folder, config.range))


def data(config: Config) -> None:
    """Read the data set as training would, say what is in it, and draw samples."""
    config.skip_bad = True  # the report names them all
    settle_data(config, math.prod(strides(config.layer)))
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
    build, gpu = lambda: build_model(config), device.type == "cuda"
    cost = costs(build, lambda model: model.blocks(), config.in_shape, at_once, bfloat16, gpu)
    print(model, cost_table(model, cost, at_once, free_memory(device)), sep="\n")
