"""A trained model for other programs: torch.export (.pt2), ONNX (.onnx), safetensors weights, and for the Hugging Face
hub a folder, or a repository itself.

Every file is written under another name, run or read back, compared with the model, and only then renamed.
"""

import errno
import importlib
import io
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import UserError
from ..clips.writing import check_output
from ..run.files import write_atomically, write_json
from ..run.flags import CALL_FLAGS, RUN_FLAGS
from ..run.weights import save_safetensors
from .card import model_card
from .hub import CARD, FLAGS, WEIGHTS, is_hub, repository, upload

TOLERANCE = 5e-4  # of a sequence as most are: an eighth of a grey level
EDGE = 0.02  # of any. Bins that lie at their thresholds, where rounding decides, have been seen to change 0.005.
ENDS = torch.tensor(0.0), torch.tensor(1.0)  # of the values of pixels
PACKAGES = {".pt2": (), ".onnx": ("onnx", "onnxscript", "onnxruntime"), ".safetensors": ("safetensors",), "": ()}
OWN_FLAGS = (*CALL_FLAGS, *RUN_FLAGS, "data_root", "cache_dir")  # tell of one machine, and are not published
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # errors that are the disk's
TESTED = "2.7"  # the oldest PyTorch whose exporters were seen to manage it; 2.5 does not


def write_export(model: nn.Module, in_shape: Sequence[int], config: Mapping, output: str | Path) -> str:
    """Write model to output in the format of its name; returns a line about it. config: its flags."""
    check_export(output)
    if is_hub(output):
        with tempfile.TemporaryDirectory() as folder:
            write_folder(model, config, Path(folder), repository(output)[0], on_hub=True)
            return f"{output}: {upload(Path(folder), output)}"
    path = Path(output)
    if not path.suffix:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial.") as temporary:
            folder = Path(temporary) / path.name
            folder.mkdir()
            write_folder(model, config, folder, path.as_posix())
            folder.replace(path)
        return f"{path}: {WEIGHTS}, {FLAGS} and {CARD}; every --ckpt takes it, and so does from_pretrained"
    if path.suffix.lower() == ".safetensors":
        save_safetensors(model.state_dict(), config, path)
        return f"{path}: the weights, with the flags as metadata; every --ckpt takes it"
    typical, worst = export_model(model, tuple(in_shape), path)
    why = " (as rounding moves the model itself)" if typical > TOLERANCE else ""
    shape = ", ".join(map(str, in_shape))
    deviates = f"sequences deviate by {typical:.1e}{why}, none by more than {worst:.1e}"
    limits = " ".join(f"{value:g}" for value in config.get("value_range") or ())
    scaled = f"; values are scaled, LOW HIGH of each channel at 0 and 1: {limits}" if limits else ""
    return f"{path}: past (B, {shape}) -> future, any B; {deviates}{scaled}"


def halve(model: nn.Module, output: str | Path) -> None:
    """Round the real parameters of model to float16; running statistics stay as they are.

    Raises UserError where output is a program, which would compute in float16, or a weight is out of its range.
    """
    if Path(output).suffix.lower() in (".pt2", ".onnx"):
        raise UserError(f"--half: is for weights (.safetensors, a folder, the hub), not for {output}")
    for p in model.parameters():
        if p.is_floating_point():  # neither complex numbers nor integers
            p.data = p.data.half()
    if name := next((n for n, p in model.named_parameters() if not torch.isfinite(p).all()), None):
        raise UserError(f"--half: '{name}' is out of the range of float16; leave --half out")


def write_folder(model: nn.Module, config: Mapping, folder: Path, name: str, on_hub: bool = False) -> None:
    """Fill a folder with what a repository of name on the hub holds."""
    published = {flag: value for flag, value in config.items() if flag not in OWN_FLAGS}
    save_safetensors(model.state_dict(), published, folder / WEIGHTS)
    write_json(folder / FLAGS, published)
    write_atomically(folder / CARD, model_card(model, published, str(config["ckpt"]), name, on_hub).encode())


def check_export(output: str | Path) -> None:
    """Raise UserError for a kind of file or a place that cannot be written, and for a package that is missing."""
    if is_hub(output):
        repository(output)
        return
    path = Path(output)
    check_output(path, tuple(PACKAGES))
    if not path.suffix and path.exists():
        raise UserError(f"--output {path}: is there already; name a new folder")
    for name in PACKAGES[path.suffix.lower()]:
        try:
            importlib.import_module(name)
        except ImportError:
            raise UserError(f"--output {path}: needs the package {name}; pip install {name}") from None


def full_disk(error: Exception, path: Path) -> UserError | None:
    """What to tell the user of an error in writing path where the disk is to blame, however the writer wrapped it."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    code = next((one.errno for one in chain if isinstance(one, OSError) and one.errno in DISK), None)
    return code and UserError(f"--output {path}: cannot be written ({os.strerror(code)})")


def export_model(model: nn.Module, in_shape: tuple[int, ...], path: Path) -> tuple[float, float]:
    """Write model, (B, *in_shape) -> frames with any B, as .pt2 or .onnx. Returns by how much what was written deviates
    from it, in the median of some sequences and at most.

    Raises UserError where the median is over 5e-4 or one sequence over 0.02, and over what rounding does to the model
    itself.
    """
    model = model.eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)  # what is refused is so every time
    inputs = [torch.rand(b, *in_shape, generator=generator) for b in (2, 1, 4)]
    expected = [model(past) for past in inputs]
    rounding = torch.stack([changes(model, [past.nextafter(end) for past in inputs], expected) for end in ENDS]).amax(0)
    example = inputs[0]
    partial = path.with_name(f".partial.{path.name}")
    try:
        try:
            write = export_onnx if path.suffix.lower() == ".onnx" else export_program
            run = write(model, example, partial)
        except Exception as error:  # exporters fail in many ways, the older the more
            if full := full_disk(error, path):
                raise full from None
            known = f"PyTorch {torch.__version__} cannot export it ({type(error).__name__}); {TESTED} is known to"
            raise UserError(f"--output {path}: {known}") from error
        found = changes(run, inputs, expected)
        for deviation, moved, allowed in (
            (found.median(), rounding.median(), TOLERANCE),
            (found.max(), rounding.max(), EDGE),
        ):
            if not deviation <= max(allowed, 2 * moved):
                reason = f"what was exported deviates by {deviation:.2g} from the model"
                raise UserError(f"--output {path}: {reason}; not kept")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return found.median().item(), found.max().item()


def changes(run: Callable[[Tensor], Tensor], inputs: Sequence[Tensor], expected: Sequence[Tensor]) -> Tensor:
    """The largest change from expected in every sequence of the batches: (sequences,).

    Next to nothing in most, where inputs change in their last bit or another program adds in another order. But in some
    sequences, of large models in all, a bin lies so near its threshold that rounding opens or closes the gate.
    """
    return torch.cat([(run(past) - frames).abs().flatten(1).amax(1) for past, frames in zip(inputs, expected)])


def export_program(model: nn.Module, example: Tensor, path: Path) -> Callable[[Tensor], Tensor]:
    """Write a torch.export program with any batch size, and load it again to run."""
    data = io.BytesIO()  # in files, PyTorch's writer does not say why it fails, and may end the process
    torch.export.save(any_batch(model, example), data)
    path.write_bytes(data.getbuffer())
    return torch.export.load(str(path)).module()


def any_batch(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """The model's program for batches of any size."""
    batch = torch.export.Dim("batch", min=1, max=2**31 - 1)  # PyTorch 2.7 refuses a size without bound
    return torch.export.export(model, (example,), dynamic_shapes={"past": {0: batch}})


def export_onnx(model: nn.Module, example: Tensor, path: Path) -> Callable[[Tensor], Tensor]:
    """Write an ONNX file with any batch size, and load it to run with onnxruntime on the CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's notes to its own developers
        # A program: given a model, PyTorch 2.9 takes one sequence for another case.
        torch.onnx.export(
            any_batch(model, example), (example,), str(path), input_names=["past"], output_names=["future"],
            dynamo=True, external_data=False, verbose=False,
        )  # fmt: skip
    return onnx_runner(path)


def onnx_runner(path: Path) -> Callable[[Tensor], Tensor]:
    """The ONNX file at path, run by onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda past: torch.from_numpy(session.run(None, {"past": past.numpy()})[0])
