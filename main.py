"""DFDNet on the command line: flags, presets, and one function of core.py a mode. `python main.py -h` explains them."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from API.machine.processes import leave, processes, rank, starts
from API.presets import PRESETS
from API.run.interrupt import RESUME_ME, Interrupted

MODES = ("train", "test", "predict", "compare", "explain", "export", "data", "summary")
DESCRIPTION = """\
Train, test and examine DFDNet, which predicts the next frames of a video.

  python main.py --dataname digits      try it: handwritten digits, no download, minutes
  python main.py                        the paper's Moving MNIST run
  python main.py test --ckpt FILE       score a checkpoint
  python main.py predict --ckpt FILE --input VIDEO --output NEXT.mp4
  python main.py compare RUN RUN …      tested runs, or anyone's predictions, side by side
  python main.py explain --ckpt FILE    pictures of what the filters do
  python main.py export --ckpt FILE --output model.onnx (or .pt2, .safetensors)
  python main.py data --dataname kth    read a data set, say what is in it and whether its splits overlap
  python main.py summary                parameters, multiply-adds and memory

Defaults are those of the chosen --dataname: `python main.py -h --dataname digits` shows the ones of digits."""


DEFAULTS = dict(
    mode="train",
    data_root="data",
    cache_dir=None,
    no_cache=False,
    skip_bad=False,
    resize=None,
    stride=None,
    split_by=None,
    yuv_size=None,
    yuv_depth=None,
    release=False,
    grad_clip=None,
    init=None,
    res_dir="results",
    ex_name=None,
    resume=None,
    save_every=None,
    overwrite=False,
    seed=1,
    device="auto",
    gpu=0,
    precision="auto",
    compile=None,
    accumulate=1,
    checkpoint_blocks=False,
    on_nonfinite="stop",
    shard=False,
    compress_gradients=False,
    timeout=10.0,
    deterministic=False,
    ckpt=None,
    save_predictions=0,
    protocol=["strict"],
    lpips=False,
    lpips_weights=None,
    input=None,
    output=None,
    frames=None,
    start=None,
    every=None,
    side_by_side=False,
    stage=None,
    block=None,
)


def positive(kind: type) -> type:
    """An argparse type: a number above zero."""

    def parse(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not a positive number")
        return value

    parse.__name__ = f"positive {kind.__name__}"
    return parse


def steps_or_minutes(text: str) -> str:
    """An argparse type: "500" steps or "10m" minutes."""
    kind, number = (float, text[:-1]) if text.endswith("m") else (int, text)
    positive(kind)(number)
    return text


def not_negative(text: str) -> int:
    """An argparse type: a whole number from zero on."""
    if (value := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def build_parser(preset: dict) -> argparse.ArgumentParser:
    """All flags, with the preset's values as defaults."""
    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        formatter_class=lambda prog: HelpFormatter(prog, preset),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    whole, real, switch = positive(int), positive(float), argparse.BooleanOptionalAction
    parser.add_argument("mode", nargs="?", choices=MODES, default="train", help="what to do")
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", default=[], help="for compare: run folders, or npz files of predictions"
    )

    data = parser.add_argument_group("data")
    data.add_argument("--dataname", choices=PRESETS, help="data set, and with it the defaults")
    data.add_argument("--data_root", help="folder that holds the data sets")
    data.add_argument("--in_shape", type=whole, nargs=4, metavar=("T", "C", "H", "W"), help="frames given to the model")
    data.add_argument("--out_shape", type=whole, nargs=4, metavar=("T", "C", "H", "W"), help="frames asked of it")
    data.add_argument("--batch_size", type=whole, help="sequences a training step")
    data.add_argument("--val_batch_size", type=whole, help="sequences at once in validation and test")
    data.add_argument("--num_workers", type=not_negative, help="processes that load data; 0: the training process")
    data.add_argument("--cache_dir", help="folder for decoded videos (default: .cache in data_root)")
    data.add_argument("--no_cache", action="store_true", help="decode videos anew each time they are read; slow")
    data.add_argument("--skip_bad", action="store_true", help="go on without clips that cannot be read, and say which")
    data.add_argument("--stride", type=whole, help="frames between the starts of windows (default: a window's length)")
    data.add_argument(
        "--resize",
        choices=("crop", "stretch"),
        help="cut or distort other aspect ratios (default: video crop, else stretch)",
    )
    data.add_argument(
        "--split",
        dest="split_by",
        choices=("list", "subject"),
        help="human: published lists, which leak, or by subject",
    )
    data.add_argument(
        "--yuv_size", type=whole, nargs=2, metavar=("W", "H"), help="of raw YUV without a size in its name"
    )
    data.add_argument(
        "--yuv_depth", type=int, choices=(8, 10), help="bits of raw YUV (default: 10 if its name says so)"
    )

    model = parser.add_argument_group("model")
    model.add_argument("--hid_S", type=whole, help="features a frame, D")
    model.add_argument(
        "--layer", type=whole, help="depth of the spatial encoder and decoder; every second layer halves"
    )
    model.add_argument("--kernel_size", type=whole, nargs="+", help="of the encoder's layers: one each, or one for all")
    model.add_argument(
        "--layer_config", type=not_negative, nargs="+", help="DFDBs of the temporal stages, one number each"
    )
    model.add_argument("--groups", type=whole, help="a DFDB works on T * hid_S / groups channels")
    model.add_argument(
        "--COF",
        type=float,
        help="cut-off frequency, of the signal length; the filter acts above it: nowhere from 0.5 on",
    )
    model.add_argument(
        "--segments", type=whole, nargs=2, metavar=("R1", "R2"), help="channel segments of a DFDB's branches"
    )
    model.add_argument("--release", action=switch, help="compute what the authors' code does, see README")

    optim = parser.add_argument_group("optimisation")
    optim.add_argument("--epochs", type=whole, help="passes over the training data")
    optim.add_argument("--lr", type=real, help="peak of the one-cycle schedule of Adam")
    optim.add_argument("--grad_clip", type=real, help="largest norm of the gradient (default: no clipping)")
    optim.add_argument(
        "--accumulate",
        type=whole,
        metavar="N",
        help="compute a batch in N parts; the same but for BatchNorm's statistics",
    )
    optim.add_argument(
        "--on_nonfinite",
        choices=("stop", "skip"),
        help="at a loss or gradient that is not finite; skip counts the step",
    )
    optim.add_argument("--init", metavar="FILE", help="start from a checkpoint's weights, ours or the authors'")

    run = parser.add_argument_group("run")
    run.add_argument("--res_dir", help="folder of all results")
    run.add_argument(
        "--ex_name",
        help="name of this run, its folder in res_dir (default: the data set's name; to test and explain, the run that "
        "--ckpt is of)",
    )
    run.add_argument(
        "--resume",
        nargs="?",
        const="yes",
        choices=("yes", "auto"),
        help="go on with the run ex_name; auto: or start it",
    )
    run.add_argument(
        "--save_every", type=steps_or_minutes, metavar="N", help="save within epochs too: every N steps, or Nm minutes"
    )
    run.add_argument("--overwrite", action=switch, help="start the run ex_name anew, its checkpoints are lost")
    run.add_argument("--log_step", type=whole, help="epochs between validations, each with a checkpoint")
    run.add_argument("--seed", type=not_negative, help="of weights and training data")
    run.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), help="where to compute")
    run.add_argument("--gpu", type=not_negative, help="which GPU, counted from 0")
    run.add_argument(
        "--precision",
        choices=("auto", "fp32", "tf32", "bf16"),
        help="auto: bf16 where the hardware has it; FFT and loss stay fp32",
    )
    run.add_argument("--amp", dest="precision", action="store_const", const="bf16", help="short for --precision bf16")
    run.add_argument("--compile", action=switch, help="compile the DFDBs (default: to train, on GPUs that have bf16)")
    run.add_argument("--checkpoint_blocks", action=switch, help="compute blocks twice, to keep an eighth of the memory")
    run.add_argument("--deterministic", action=switch, help="the same bits every time, also on a GPU; slower")

    many = parser.add_argument_group("many processes", "torchrun --nproc_per_node N main.py …; --batch_size is of all")
    many.add_argument(
        "--shard", action=switch, help="spread the weights over the processes, for models too large for one"
    )
    many.add_argument("--compress_gradients", action=switch, help="send gradients as bfloat16, half the bytes")
    many.add_argument("--timeout", type=real, metavar="MIN", help="give up when a process has not answered for so long")

    test = parser.add_argument_group("test")
    test.add_argument("--ckpt", metavar="FILE", help="checkpoint to test; its own flags are the defaults")
    test.add_argument(
        "--protocol", nargs="+", choices=("strict", "openstl", "release"), help="conventions of the metrics, see README"
    )
    test.add_argument("--lpips", action=switch, help="measure LPIPS too, with AlexNet's weights from torch's hub cache")
    test.add_argument("--lpips_weights", metavar="FILE", help="… or from this file")
    test.add_argument("--save_predictions", type=not_negative, metavar="N", help="write N sequences to predictions.npz")

    ahead = parser.add_argument_group("predict")
    ahead.add_argument("--input", help="a video, GIF, npy array or folder of images, or a folder of such")
    ahead.add_argument(
        "--output", help="where to: .mp4 .mov .mkv .gif .npy, or a folder for PNGs; export: .pt2 .onnx .safetensors"
    )
    ahead.add_argument("--frames", type=whole, metavar="N", help="how many frames ahead (default: one pass)")
    ahead.add_argument("--start", type=not_negative, nargs="+", help="first past frames (default: the last window)")
    ahead.add_argument("--every", type=whole, metavar="N", help="predict from every N-th window; 1: from all")
    ahead.add_argument("--side_by_side", action=switch, help="past and truth left, past and prediction right")

    look = parser.add_argument_group("explain")
    look.add_argument("--stage", type=not_negative, nargs="+", help="stages to draw (default: all)")
    look.add_argument("--block", type=not_negative, nargs="+", help="DFDBs of each to draw (default: the first)")
    return parser


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows the preset's values, which argparse does not know: a flag left out leaves no trace in the namespace."""

    def __init__(self, prog: str, preset: dict) -> None:
        super().__init__(prog)
        self.preset = preset

    def _get_help_string(self, action: argparse.Action) -> str:
        value = self.preset.get(action.dest)
        if value is None or action.const is not None:
            return action.help
        return f"{action.help} (default: {' '.join(map(str, value)) if isinstance(value, list) else value})"


def parse(argv: Sequence[str]) -> tuple[dict, dict]:
    """(defaults of the chosen preset, flags that were given)."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--dataname", default="mmnist")
    name = first.parse_known_args(argv)[0].dataname
    defaults = DEFAULTS | PRESETS.get(name, {}) | {"dataname": name}
    return defaults, vars(build_parser(defaults).parse_args(argv))


def run(argv: Sequence[str]) -> None:
    """Parse, settle the flags, call the mode's function."""
    defaults, given = parse(argv)
    import core  # after parsing: PyTorch takes seconds to load, and -h should not
    from API.run.checkpoint import last_checkpoint
    from API.run.recorder import run_of

    mode = given["mode"]
    if mode == "train" and starts():  # by torchrun, after a process was lost
        given = {flag: value for flag, value in given.items() if flag != "overwrite"} | {"resume": "auto"}
    if processes() > 1 and mode not in ("train", "test"):
        raise ValueError(f"{mode} runs in one process: leave torchrun out")
    if mode == "compare" and not given["runs"]:
        raise ValueError("compare needs at least one RUN, such as results/digits")
    if mode != "compare" and given["runs"]:
        raise ValueError(f"{given['runs'][0]}: only compare takes runs; did you forget a flag before it?")
    name = given.get("ex_name") or given.get("dataname", defaults["dataname"])
    checkpoint, state = given.get("ckpt"), None
    if mode == "train" and given.get("resume"):
        folder = Path(given.get("res_dir", defaults["res_dir"])) / name
        checkpoint, state = last_checkpoint(folder) or (None, None)
        if checkpoint is None and given["resume"] != "auto":
            raise ValueError(f"--resume: there is no checkpoint in {folder} to go on from; leave --resume out to start")
    if mode in ("test", "predict", "explain", "export") and not checkpoint:
        raise ValueError(f"{mode} needs --ckpt FILE, such as results/digits/checkpoints/best.pth")
    if mode == "export" and not given.get("output"):
        raise ValueError("export needs --output FILE: .pt2, .onnx or .safetensors")
    if mode == "predict" and not (given.get("input") and given.get("output")):
        raise ValueError("predict needs --input PATH and --output PATH")
    config, state = core.settle_flags(defaults, given, checkpoint, state)
    if mode in ("test", "explain") and not given.get("ex_name"):
        folder = run_of(Path(checkpoint)) or Path(config.res_dir, Path(checkpoint).stem)
        config.res_dir, config.ex_name = given.get("res_dir", folder.parent), folder.name
    elif mode != "compare":
        config.ex_name = given.get("ex_name") or config.dataname
    if mode == "summary":
        core.summary(config)
    elif mode == "compare":
        core.compare(config)
    elif mode == "data":
        core.data(config)
    elif mode == "test":
        core.test(config, state)
    elif mode in ("predict", "explain", "export"):
        getattr(core, mode)(config, state)
    else:
        core.train(config, state)


def main() -> int:
    """Exit code 0; 2 after the user's mistake, with one line about it; 75 stopped, to be resumed; 130 interrupted."""
    who = f"process {rank()}: " if rank() else ""
    try:
        run(sys.argv[1:])
    except Interrupted as stop:
        if not rank():
            print(stop, file=sys.stderr)
        return RESUME_ME
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except Exception as error:
        line = explain_failure(error)
        if line is None or os.environ.get("DFDNET_TRACEBACK"):
            raise
        print(f"error: {who}{line}", file=sys.stderr)
        return 2
    return 0


def explain_failure(error: Exception) -> str | None:
    """What to tell the user of it; None of a mistake in our own code, which deserves its traceback."""
    if isinstance(error, (ValueError, OSError)):
        lines = str(error).strip().splitlines()
        if len(lines) > 1 and "DataLoader worker" in lines[0]:  # PyTorch puts that one's traceback in the message
            return lines[-1].partition(": ")[2]
        return str(error)
    if isinstance(error, RuntimeError):
        from API.machine.device import describe_failure

        return describe_failure(error)
    return None


if __name__ == "__main__":
    code = main()
    leave(code, well=code in (0, RESUME_ME))
