"""DFDNet on the command line: the flags of each mode, and one function of core.py a mode."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from API import UserError
from API.machine.processes import leave, processes, rank
from API.presets import PRESETS
from API.run.interrupt import RESUME_ME, Interrupted
from API.run.output import keep_printing

MODES = {
    "train": "train, validate and test a model (the default mode)",
    "test": "score a checkpoint on the test set, beside baselines",
    "predict": "predict the next frames of your own videos or arrays",
    "compare": "tested runs, or anyone's predictions, side by side",
    "explain": "draw what the filters do",
    "export": "write a model as .pt2, .onnx or .safetensors, or for the Hugging Face hub",
    "data": "read a data set, say what is in it and whether its splits overlap",
    "summary": "parameters, multiply-adds and memory",
}
EXAMPLES = """\
  python main.py --dataname digits      try it: handwritten digits, no download, minutes
  python main.py                        the paper's Moving MNIST run
  python main.py test --ckpt FILE       score a checkpoint

Other modes, each with its own flags (python main.py MODE -h):
"""


def number(kind: type, above: float, least: float = float("-inf"), most: float = sys.float_info.max) -> Callable:
    """An argparse type: a number of this kind, above `above`, at least `least` and at most `most`."""

    def parse(text: str) -> float:
        value = kind(text)
        if value > most:
            raise argparse.ArgumentTypeError(f"{text} is too large: at most {most}")
        if not (above < value and value >= least):
            raise argparse.ArgumentTypeError(f"{text} is not a {'positive ' if above == 0 else 'non-negative '}number")
        return value

    parse.__name__ = kind.__name__
    return parse


WHOLE, REAL, COUNT = number(int, 0), number(float, 0), number(int, -1, 0)
SWITCH = argparse.BooleanOptionalAction


class Shape(argparse.Action):
    """T C H W, or T alone, where the data say the rest."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: list, *_) -> None:
        if len(values) not in (1, 4):
            raise argparse.ArgumentError(self, "expected 4 arguments, T C H W")
        setattr(namespace, self.dest, values)


def steps_or_minutes(text: str) -> str:
    """An argparse type: "500" steps or "10m" minutes."""
    REAL(text[:-1]) if text.endswith("m") else WHOLE(text)
    return text


def data_flags(parser: argparse.ArgumentParser) -> None:
    """Which data, and how it is read."""
    add = parser.add_argument_group("data").add_argument
    add("--dataname", choices=PRESETS, help="data set, and with it the defaults")
    add("--data_root", default="data", metavar="DIR", help="folder that holds the data sets (arrays: or a file)")
    add("--val_batch_size", type=WHOLE, metavar="N", help="sequences at once in validation and test")
    add("--num_workers", type=COUNT, metavar="N", help="processes that load data; 0: the main process")
    add("--cache_dir", metavar="DIR", help="folder for decoded videos (default: .cache in data_root)")
    add("--no_cache", action="store_true", default=False, help="decode videos anew at every read; slow")
    add("--stride", type=WHOLE, metavar="N", help="frames between the starts of windows (default: a window's length)")
    resize = "cut or distort other aspect ratios (default: video and arrays crop, else stretch)"
    add("--resize", choices=("crop", "stretch"), help=resize)
    noise = "sigma of Gaussian noise on past frames in [0, 1]; the future stays clean"
    add("--noise", type=number(float, -1, 0), default=0.0, metavar="SIGMA", help=noise)
    add("--split", dest="split_by", choices=("list", "subject"), help="human: published lists, which leak, or subjects")
    clip_flags(add)
    limits = "arrays: values of 0 and 1, or those of each channel (default: least and largest)"
    add("--value_range", type=float, nargs="+", metavar=("LOW", "HIGH"), help=limits)
    add("--target_channels", type=COUNT, nargs="+", metavar="C", help="arrays: channels to predict (default: all)")


def clip_flags(add: Callable) -> None:
    """How clips and arrays are read."""
    axes = "arrays: a letter an axis, of N sequences, T, C, H, W (default: THW or NTCHW)"
    add("--layout", metavar="LETTERS", help=axes)
    add("--variable", metavar="NAME", help="arrays: which one, where a file holds several")
    add("--fill_missing", metavar="RULE", help="arrays: missing values become a number, or those of the previous frame")
    add("--skip_bad", action="store_true", default=False, help="leave out unreadable clips, and say which")
    add("--yuv_size", type=WHOLE, nargs=2, metavar=("W", "H"), help="of raw YUV without a size in its name")
    depths = (8, 9, 10, 12, 14, 16)
    add("--yuv_depth", type=int, choices=depths, help="bits of raw YUV (default: as its name says, else 8)")
    layout = "FFmpeg's name of raw YUV's format (default: as its name says, else yuv420p)"
    add("--yuv_format", metavar="NAME", help=layout)


def generated_flags(parser: argparse.ArgumentParser) -> None:
    """How training data is generated."""
    add = parser.add_argument_group("generated data").add_argument
    add("--epoch_size", type=WHOLE, metavar="N", help="sequences an epoch (default: mmnist 10000, digits 600)")
    held_out = "mmnist: digits of 60000 held out to validate (default: 5000); in the field: 0"
    add("--val_digits", type=COUNT, metavar="N", help=held_out)


def model_flags(parser: argparse.ArgumentParser) -> None:
    """DFDNet's arguments; a new one is a line here and an argument there."""
    add = parser.add_argument_group("model").add_argument
    shape = dict(type=WHOLE, nargs="+", action=Shape, metavar=("T", "C H W"))
    add("--in_shape", **shape, help="frames given to the model; of arrays T is enough")
    add("--out_shape", **shape, help="frames asked of it; of arrays T is enough")
    add("--hid_S", type=WHOLE, metavar="D", help="features a frame")
    add("--layer", type=WHOLE, metavar="N", help="depth of encoder and decoder; every second layer halves")
    add("--kernel_size", type=WHOLE, nargs="+", metavar="K", help="of the encoder's layers: one each, or one for all")
    add("--layer_config", type=COUNT, nargs="+", metavar="N", help="DFDBs of the temporal stages, one number each")
    add("--groups", type=WHOLE, metavar="N", help="a DFDB has T * hid_S / groups channels")
    add("--COF", type=float, metavar="F", help="cut-off, of the signal length; the filter acts above; 0.5: nowhere")
    add("--segments", type=WHOLE, nargs=2, metavar=("R1", "R2"), help="channel segments of a DFDB's branches")
    add("--release", action=SWITCH, default=False, help="compute what the authors' code does (docs/method.md)")


def training_flags(parser: argparse.ArgumentParser) -> None:
    """Optimisation, the run folder, and many processes."""
    add = parser.add_argument_group("optimisation").add_argument
    add("--epochs", type=WHOLE, metavar="N", help="passes over the training data")
    add("--lr", type=REAL, metavar="LR", help="peak of the one-cycle schedule of Adam")
    batch_flags(add)
    add("--grad_clip", type=REAL, metavar="NORM", help="largest norm of the gradient (default: no clipping)")
    add("--on_nonfinite", choices=("stop", "skip"), default="stop", help="at a loss or gradient that is not finite")
    add(
        "--init",
        metavar="FILE",
        help="start from the weights of a checkpoint, ours or the authors', as far as they fit",
    )

    add = parser.add_argument_group("run").add_argument
    resume = "go on with the run ex_name; auto: or start it"
    add("--resume", nargs="?", const="yes", choices=("yes", "auto"), help=resume)
    add("--save_every", type=steps_or_minutes, metavar="N", help="save within epochs: every N steps, or Nm minutes")
    add("--overwrite", action=SWITCH, default=False, help="start the run ex_name anew; the old one is lost")
    logger = "what shows the run, beside metrics.jsonl; several at once"
    add("--logger", nargs="+", choices=("tensorboard", "wandb", "none"), default=["tensorboard"], help=logger)
    add("--log_step", type=WHOLE, metavar="N", help="epochs between validations, each with a checkpoint")

    about = "torchrun --nproc_per_node N main.py …; --batch_size is of all"
    add = parser.add_argument_group("many processes", about).add_argument
    add("--shard", action=SWITCH, default=False, help="spread the weights, for models too large for one GPU")
    add("--compress_gradients", action=SWITCH, default=False, help="send gradients as bfloat16, half the bytes")


def batch_flags(add: Callable) -> None:
    """How much is computed at once, and what is kept for backward."""
    add("--batch_size", type=WHOLE, metavar="N", help="sequences a training step")
    accumulate = "compute a batch in N parts; the same but for BatchNorm's statistics"
    add("--accumulate", type=WHOLE, default=1, metavar="N", help=accumulate)
    add(
        "--checkpoint_blocks",
        action=SWITCH,
        default=False,
        help="compute blocks twice, to keep a tenth of what backward needs",
    )


def machine_flags(parser: argparse.ArgumentParser) -> None:
    """Where to compute, and how."""
    add = parser.add_argument_group("machine").add_argument
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to compute")
    add("--gpu", type=COUNT, default=0, metavar="N", help="which GPU, counted from 0")
    precision = "auto: bf16 where the hardware has it; FFT and loss stay fp32"
    add("--precision", choices=("auto", "fp32", "tf32", "bf16"), default="auto", help=precision)
    add("--amp", dest="precision", action="store_const", const="bf16", help="short for --precision bf16")
    add("--compile", action=SWITCH, help="compile the blocks (default: to train, on GPUs that have bf16)")
    add("--graphs", action=SWITCH, default=False, help="replay steps as CUDA graphs, in which Python runs no more")
    add("--plain", action=SWITCH, default=False, help="apply nothing of API/speed: to debug, or to compare with")
    add("--deterministic", action=SWITCH, default=False, help="the same bits every time, also on a GPU; slower")
    add(
        "--seed",
        type=number(int, -1, 0, 2**63 - 1),
        default=1,
        metavar="N",
        help="of weights, training data and held-out splits",
    )
    add("--timeout", type=REAL, default=10.0, metavar="MIN", help="of many processes: give up after so long")


def run_flags(parser: argparse.ArgumentParser) -> None:
    """Where results go."""
    add = parser.add_argument_group("results").add_argument
    add("--res_dir", default="results", metavar="DIR", help="folder of all results")
    name = "this run's folder in res_dir (default: the data set's name, or the run of --ckpt)"
    add("--ex_name", metavar="NAME", help=name)


def checkpoint_flags(parser: argparse.ArgumentParser) -> None:
    """The checkpoint to take up."""
    help = "checkpoint, exported folder or hf://owner/name[@revision]; its own flags are the defaults"
    parser.add_argument_group("checkpoint").add_argument("--ckpt", metavar="FILE", help=help)


def test_flags(parser: argparse.ArgumentParser) -> None:
    """What a test measures and keeps."""
    add = parser.add_argument_group("test").add_argument
    protocols = ("strict", "openstl", "release")
    add("--protocol", nargs="+", choices=protocols, default=["strict"], help="conventions of the metrics")
    add("--lpips", action=SWITCH, default=False, help="measure LPIPS too, with AlexNet from torch's hub cache")
    add("--lpips_weights", metavar="FILE", help="… or from this file")
    add("--save_predictions", type=COUNT, default=0, metavar="N", help="write N sequences to predictions.npz")


def predict_flags(parser: argparse.ArgumentParser) -> None:
    """What to predict, and where to."""
    add = parser.add_argument_group("predict").add_argument
    add("--input", metavar="PATH", help="a clip or array of any kind that training reads, or a folder of such")
    add("--output", metavar="PATH", help="where to: .mp4 .mov .mkv .gif .npy, or a folder for PNGs")
    add("--frames", type=WHOLE, metavar="N", help="how many frames ahead (default: as in training)")
    add("--start", type=COUNT, nargs="+", metavar="N", help="first past frames (default: the last window)")
    add("--every", type=WHOLE, metavar="N", help="predict from every N-th window; 1: from all")
    add("--side_by_side", action=SWITCH, default=False, help="past and truth left, past and prediction right")
    clip_flags(add)


def compare_flags(parser: argparse.ArgumentParser) -> None:
    """What to compare."""
    parser.add_argument("runs", nargs="*", metavar="RUN", default=[], help="run folders, or npz files of predictions")
    protocols = ("strict", "openstl", "release", "physical")
    parser.add_argument("--protocol", nargs="+", choices=protocols, default=["strict"], help="of the metrics")
    limits = "values of black and white in npz files (default: 0 255 for uint8, else 0 1)"
    parser.add_argument("--range", type=float, nargs=2, metavar=("LOW", "HIGH"), help=limits)


def explain_flags(parser: argparse.ArgumentParser) -> None:
    """Which DFDBs to draw."""
    add = parser.add_argument_group("explain").add_argument
    add("--stage", type=COUNT, nargs="+", metavar="N", help="stages to draw (default: all)")
    add("--block", type=COUNT, nargs="+", metavar="N", help="DFDBs of each to draw (default: the first)")


def export_flags(parser: argparse.ArgumentParser) -> None:
    """Where to."""
    output = "where to: .pt2 .onnx .safetensors, a folder, or hf://owner/name"
    parser.add_argument("--output", metavar="FILE", help=output)
    half = "keep the weights as float16, in half the space: in .safetensors, a folder, on the hub"
    parser.add_argument("--half", action="store_true", default=False, help=half)


def summary_flags(parser: argparse.ArgumentParser) -> None:
    """What decides the memory of training."""
    add = parser.add_argument_group("training").add_argument
    add("--dataname", choices=PRESETS, help="data set, and with it the defaults")
    batch_flags(add)


FLAGS = {
    "train": (data_flags, generated_flags, model_flags, training_flags, machine_flags, run_flags, test_flags),
    "test": (checkpoint_flags, test_flags, data_flags, model_flags, machine_flags, run_flags),
    "predict": (checkpoint_flags, predict_flags, model_flags, machine_flags),
    "compare": (compare_flags, run_flags),
    "explain": (checkpoint_flags, explain_flags, data_flags, model_flags, machine_flags, run_flags),
    "export": (checkpoint_flags, export_flags, model_flags),
    "data": (data_flags, generated_flags, model_flags, machine_flags, run_flags),
    "summary": (summary_flags, model_flags, machine_flags),
}


class Parser(argparse.ArgumentParser):
    """The flags of one mode; a preset gives the defaults that no flag has."""

    def __init__(self, mode: str, preset: dict) -> None:
        title = MODES[mode][0].upper() + MODES[mode][1:] + "."
        modes = "\n".join(f"  {name:<10}{what}" for name, what in MODES.items() if name != "train")
        super().__init__(
            prog="main.py" if mode == "train" else f"main.py {mode}",
            usage=f"main.py {mode}{' RUN …' if mode == 'compare' else ''} [flags]     (-h explains them)",
            description=f"{title}\n\n{EXAMPLES}{modes}\n" if mode == "train" else title,
            epilog="Values are those of the chosen --dataname: `-h --dataname digits` shows the ones of digits.",
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=36),
            allow_abbrev=False,
        )
        self.mode = mode
        for group in FLAGS[mode]:
            group(self)
        for action in self._actions:
            action.default = preset.get(action.dest, action.default)
            if not (action.default in (None, argparse.SUPPRESS, []) or action.default is False or action.const):
                value = action.default
                action.help += f" ({' '.join(map(str, value)) if isinstance(value, list) else value})"

    def parse(self, argv: Sequence[str]) -> tuple[dict, dict]:
        """(defaults, flags that were given)."""
        _, unknown = self.parse_known_args(argv)  # prints help, and refuses values that make no sense
        if flag := next((word for word in unknown if word.startswith("--")), None):
            others = [mode for mode in MODES if flag.partition("=")[0] in Parser(mode, {})._option_string_actions]
            self.error(f"{self.mode} takes no {flag}" + (f"; it is a flag of {', '.join(others)}" if others else ""))
        if unknown:
            self.error(f"{unknown[0]}: only compare takes runs; did you forget a flag before it?")
        defaults = vars(self.parse_args([]))
        for action in self._actions:
            action.default = argparse.SUPPRESS  # a flag that is left out leaves no trace
        return defaults, vars(self.parse_args(argv))


def parse(argv: Sequence[str]) -> tuple[str, dict, dict]:
    """(mode, defaults of the mode and of the chosen preset, flags that were given)."""
    mode, argv = ("train", argv) if not argv or argv[0].startswith("-") else (argv[0], argv[1:])
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--dataname", default="mmnist")
    name = first.parse_known_args(argv)[0].dataname
    preset = PRESETS.get(name, {}) | {"dataname": name}
    if mode not in MODES:
        Parser("train", preset).error(f"unknown mode {mode}: choose from {', '.join(MODES)}")
    defaults, given = Parser(mode, preset).parse(argv)
    return mode, preset | defaults, given


def run(argv: Sequence[str]) -> None:
    """Parse, settle the flags, call the mode's function."""
    mode, defaults, given = parse(argv)
    if processes() > 1 and mode not in ("train", "test"):
        raise UserError(f"{mode} runs in one process: leave torchrun out")
    import core  # after parsing: PyTorch takes seconds to load, and -h should not
    from API.run.flags import take_up

    config, state = take_up(mode, defaults, given, core.MODEL_FLAGS)
    call = getattr(core, mode)
    call(config, state) if mode in ("train", "test", "predict", "explain", "export") else call(config)


def main(argv: Sequence[str] | None = None) -> int:
    """Run argv (default: the command line's). Exit code 0; 2 after the user's mistake, with one line about it;
    75 stopped, to be resumed; 130 interrupted."""
    who = f"process {rank()}: " if rank() else ""
    try:
        run(sys.argv[1:] if argv is None else argv)
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
    """What to tell the user of it; None of a bug, ours or the researcher's, which keeps its traceback."""
    if isinstance(error, UserError):
        lines = str(error).strip().splitlines()
        if len(lines) > 1 and "DataLoader worker" in lines[0]:  # PyTorch puts that one's traceback in the message
            return lines[-1].partition(": ")[2]
        return str(error)
    if isinstance(error, RuntimeError):
        from API.machine.device import describe_failure

        return describe_failure(error)
    return None


if __name__ == "__main__":
    keep_printing()
    code = main()
    leave(code, well=code in (0, RESUME_ME))
