"""Flags of a call, of the checkpoint it takes up, and of the presets: which one wins, and which must not change."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace as Config

from .. import UserError
from ..machine.processes import launch, rank, starts
from .checkpoint import last_checkpoint, load_checkpoint
from .recorder import claim, launched_by, refuse_checkpoints, run_of
from .release import infer_args, infer_release_args, is_release
from .weights import as_checkpoint

# How --dataname arrays reads its files.
ARRAY_FLAGS = ("layout", "variable", "fill_missing", "value_range", "target_channels")
# Passed on to the data set and its loader.
DATA_FLAGS = (
    "data_root", "in_shape", "out_shape", "batch_size", "val_batch_size", "num_workers", "seed", "cache_dir",
    "no_cache", "skip_bad", "resize", "stride", "split_by", "yuv_size", "yuv_depth", "yuv_format", "epoch_size",
    "val_digits", "noise", *ARRAY_FLAGS,
)  # fmt: skip
# What, beside the model's flags, affects the results of a run, and must not change under it.
FIXED_FLAGS = (
    "dataname", "epochs", "lr", "batch_size", "seed", "resize", "stride", "split_by", "epoch_size", "val_digits",
    "noise", "yuv_size", "yuv_depth", "yuv_format", *ARRAY_FLAGS,
)  # fmt: skip
# What may change under it, to get past gradients that are not finite or to need less memory; the log says so.
CHANGEABLE_FLAGS = ("grad_clip", "on_nonfinite", "precision", "accumulate")
# What belongs to one call of main.py, and is not taken over from the checkpoint of an earlier one.
CALL_FLAGS = (
    "mode", "ckpt", "init", "res_dir", "ex_name", "resume", "overwrite", "device", "gpu", "runs", "input", "output",
    "frames", "start", "every", "side_by_side", "stage", "block", "half",
)  # fmt: skip
# What --resume takes over from the run, and no other call does.
RUN_FLAGS = (
    "accumulate", "checkpoint_blocks", "compile", "graphs", "plain", "shard", "compress_gradients", "timeout", "logger",
    "protocol", "lpips", "lpips_weights", "save_predictions",
)  # fmt: skip


def take_up(
    mode: str, defaults: Mapping, given: Mapping, model_flags: Sequence[str] = ()
) -> tuple[Config, Mapping | None]:
    """The flags of a call of main.py, and the state of the checkpoint that it takes up, if any: --ckpt, or the run's
    last one with --resume. A run to train is claimed for this process; of model_flags it has those of --init.

    Raises UserError for flags that do not go together, and what settle_flags raises.
    """
    output = "FILE: .pt2, .onnx or .safetensors, a folder, or hf://owner/name" if mode == "export" else "PATH"
    needed = dict(ckpt="FILE, such as results/digits/checkpoints/best.pth", input="PATH", output=output)
    for flag, what in needed.items():
        if flag in defaults and not given.get(flag):
            raise UserError(f"{mode} needs --{flag} {what}")
    if mode == "compare" and not given.get("runs"):
        raise UserError("compare needs at least one RUN, such as results/digits")
    if "none" in given.get("logger", ()) and len(given["logger"]) > 1:
        raise UserError(f"--logger {' '.join(given['logger'])}: none goes with no other")
    if mode == "predict" and given.get("start") and given.get("every"):
        raise UserError("--start and --every both say where to predict from: give one of them")
    checkpoint, state, given = given.get("ckpt"), None, dict(given)
    if mode == "train":
        folder = Path(given.get("res_dir", defaults["res_dir"]), given.get("ex_name") or defaults["dataname"])
        if starts() and launched_by(folder) == launch():  # again, by torchrun, after a process of this run was lost
            given = {flag: value for flag, value in given.items() if flag != "overwrite"} | {"resume": "auto"}
        checkpoint, state = enter_run(folder, given.get("resume"), given.get("overwrite"))
        if state is None and given.get("init"):
            defaults = {**defaults, **flags_to_start_with(given["init"], defaults["dataname"], model_flags)}
    config, state = settle_flags(defaults, given, checkpoint, state)
    config.mode = mode
    for flag in ("compile", "graphs", "checkpoint_blocks"):
        if getattr(config, "plain", False) and getattr(config, flag, False):
            raise UserError(f"--plain: applies nothing; leave out --{flag}")
    if mode == "predict":  # its clips are not those that the checkpoint was trained on
        own = ("skip_bad", "yuv_size", "yuv_depth", "yuv_format")
        vars(config).update({flag: (defaults | given)[flag] for flag in own})
        unused = [flag for flag in ARRAY_FLAGS if given.get(flag) is not None]
        if unused and config.dataname != "arrays":
            raise UserError(f"--{unused[0]}: the checkpoint is of --dataname {config.dataname}, which does not use it")
    if mode in ("test", "explain") and not given.get("ex_name"):
        path = Path(checkpoint)
        folder = run_of(path) or Path(config.res_dir, path.stem if path.is_file() else path.name)
        config.res_dir, config.ex_name = given.get("res_dir", folder.parent), folder.name
    elif mode != "compare":
        config.ex_name = given.get("ex_name") or config.dataname
    return config, state


def enter_run(folder: Path, resume: str | None, overwrite: bool | None) -> tuple[Path | None, Mapping | None]:
    """Claim a run folder for this process: (the checkpoint to train on from, its state), or (None, None) to start.

    Raises UserError where another run is in the way, or there is none to go on with.
    """
    if resume and overwrite:
        raise UserError("--resume goes on with a run, --overwrite starts it anew: give one of them")
    if folder.is_dir() and not rank():
        claim(folder)
    if not resume:
        if not overwrite:
            refuse_checkpoints(folder)
        return None, None
    found = last_checkpoint(folder)
    if found is None and resume != "auto":
        raise UserError(f"--resume: there is no checkpoint in {folder} to go on from; leave --resume out to start")
    return found or (None, None)


def settle_flags(
    defaults: Mapping, given: Mapping, checkpoint: str | Path | None, state: Mapping | None = None
) -> tuple[Config, Mapping | None]:
    """Flags that are given win over a checkpoint's own, and those over the defaults: (flags, the checkpoint's state).

    state: the checkpoint's that a run goes on from, which hands on its RUN_FLAGS, too.
    Of bare weights, the sizes are read off their shapes.
    Raises UserError where the checkpoint does not load, or is the authors' and --release is not given.
    """
    if checkpoint is None:
        return Config(**{**defaults, **given}), None
    resumed = state is not None
    state = as_checkpoint(state if resumed else load_checkpoint(checkpoint), checkpoint)
    known = flags_of(state, checkpoint, but=CALL_FLAGS if resumed else (*CALL_FLAGS, *RUN_FLAGS))
    if state["config"] is not None:
        own = known.get("dataname")
        if own is not None and given.get("dataname", own) != own:  # the rest belongs to the other data set
            known = {flag: value for flag, value in known.items() if flag not in DATA_FLAGS}
        return Config(**{**defaults, **known, **given}), state
    release = is_release(state["model"])
    if release and not given.get("release"):
        raise UserError(
            f"{checkpoint}: holds no flags of ours; if it is one of the authors' checkpoints, add --release"
        )
    config = Config(**{**defaults, **known, **given})
    if not release:
        print(f"{checkpoint}: holds no flags; sizes are read off its weights, --COF {config.COF:g} is taken as it is")
    return config, state


def flags_of(state: Mapping, checkpoint: str | Path, but: Sequence[str] = (*CALL_FLAGS, *RUN_FLAGS)) -> dict:
    """The flags that a checkpoint holds, without those of its call (and run); of bare weights, those that their
    shapes tell. Raises UserError, naming it, where these are not the shapes of our model or the authors'."""
    if state["config"] is not None:
        return {flag: value for flag, value in state["config"].items() if flag not in but}
    try:
        return infer_release_args(state["model"]) if is_release(state["model"]) else infer_args(state["model"])
    except UserError as error:
        raise UserError(f"{checkpoint}: {error}") from None


def flags_to_start_with(checkpoint: str | Path, dataname: str, model_flags: Sequence[str]) -> dict:
    """Those of model_flags that a run on dataname takes over from the checkpoint of --init. The shapes of the frames
    are among them only where that was trained on the same data set."""
    state = as_checkpoint(load_checkpoint(checkpoint), checkpoint)
    try:
        known = flags_of(state, checkpoint)
    except UserError:  # bare weights of a model that was changed: their shapes tell nothing, but they may fit
        return {}
    same = state["config"] is not None and known.get("dataname") == dataname
    return {flag: known[flag] for flag in model_flags if flag in known and (same or flag not in DATA_FLAGS)}


def refuse_changed_flags(now: Mapping, then: Mapping, flags: Sequence[str]) -> None:
    """Raise UserError where a run would not go on as it began."""
    for flag in flags:
        if flag in then and now[flag] != then[flag]:
            was = f"this run has {then[flag]}; leave it so to --resume"
            raise UserError(f"--{flag} {now[flag]}: {was}, or start another --ex_name, with --init from its weights")


def describe_changes(now: Mapping, then: Mapping) -> list[str]:
    """A line for each of CHANGEABLE_FLAGS that is another now."""
    changed = [flag for flag in CHANGEABLE_FLAGS if flag in then and now[flag] != then[flag]]
    return [f"--{flag} is {now[flag]} from here on, and was {then[flag]}" for flag in changed]


def sequences_at_once(config: Config, processes: int) -> int:
    """How many sequences a process computes at once. Raises UserError where a batch does not divide among the
    processes, or their part of it into --accumulate."""
    if config.batch_size % processes:
        raise UserError(f"--batch_size {config.batch_size}: is for all {processes} processes together, and must divide")
    share = config.batch_size // processes
    if share % config.accumulate:
        of = f"the {share} sequences that a process has of --batch_size {config.batch_size}"
        raise UserError(f"--accumulate {config.accumulate}: must divide {of}")
    return share // config.accumulate
