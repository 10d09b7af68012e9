"""A trained model as a file for other programs: torch.export (.pt2), ONNX (.onnx), safetensors weights.

Every file is written under another name, run or read back, compared with the model, and only then renamed.
"""

import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from .writers import check_output

KINDS = (".pt2", ".onnx", ".safetensors")
TOLERANCE = 1e-4
ENDS = torch.tensor(0.0), torch.tensor(1.0)  # of the values of pixels
TESTED = "2.15"  # a PyTorch whose exporters manage it; 2.6 does not


def write_export(
    model: nn.Module, in_shape: Sequence[int], config: Mapping, path: Path, without_fft: Callable[[], None]
) -> str:
    """Write model to path in the format of its name; returns a line about it. Arguments as export_model's."""
    check_output(path, KINDS)
    if path.suffix == ".safetensors":
        save_safetensors(model.state_dict(), config, path)
        return f"{path}: the weights, with the flags as metadata; every --ckpt takes it"
    deviation = export_model(model, tuple(in_shape), path, without_fft)
    why = " (as rounding moves the model itself)" if deviation > TOLERANCE else ""
    shape = ", ".join(map(str, in_shape))
    return f"{path}: past (B, {shape}) -> future, any B; deviates by {deviation:.1e} at most{why}"


def export_model(model: nn.Module, in_shape: tuple[int, ...], path: Path, without_fft: Callable[[], None]) -> float:
    """Write model, (B, *in_shape) -> frames with any B, as .pt2 or .onnx. Returns the largest deviation seen.

    without_fft: makes the model one that ONNX can hold, with the same outputs. Raises ValueError where what was
    written deviates by more than 1e-4, and by more than rounding does to the model itself.
    """
    model = model.eval().requires_grad_(False)
    inputs = [torch.rand(b, *in_shape) for b in (2, 1, 3)]
    expected = [model(past) for past in inputs]
    allowed = max(TOLERANCE, 2 * rounding(model, inputs, expected))
    example = inputs[0]
    partial = path.with_name(f".partial.{path.name}")
    try:
        if path.suffix == ".onnx":
            without_fft()
        try:
            run = (
                export_onnx(model, example, partial)
                if path.suffix == ".onnx"
                else export_program(model, example, partial)
            )
        except Exception as error:  # exporters fail in many ways, the older the more
            known = f"PyTorch {torch.__version__} cannot export it ({type(error).__name__}); {TESTED} is known to"
            raise ValueError(f"--output {path}: {known}") from error
        deviation = max((run(p) - e).abs().max().item() for p, e in zip(inputs, expected))
        if not deviation <= allowed:
            raise ValueError(f"--output {path}: what was exported deviates by {deviation:.2g} from the model; not kept")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return deviation


def rounding(model: nn.Module, inputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest change in what model predicts where the last bit of its inputs changes.

    Next to nothing for small models. In larger ones some bin is always so near its threshold that rounding opens or
    closes the gate, here and in any other program.
    """
    changed = [(model(past.nextafter(end)) - y).abs().max() for past, y in zip(inputs, expected) for end in ENDS]
    return torch.stack(changed).max().item()


def export_program(model: nn.Module, example: Tensor, path: Path) -> Callable[[Tensor], Tensor]:
    """Write a torch.export program with any batch size, and load it again to run."""
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (example,), dynamic_shapes={"past": {0: batch}})
    torch.export.save(program, str(path))
    return torch.export.load(str(path)).module()


def export_onnx(model: nn.Module, example: Tensor, path: Path) -> Callable[[Tensor], Tensor]:
    """Write an ONNX file with any batch size, and load it to run with onnxruntime on the CPU."""
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's notes to its own developers
        torch.onnx.export(
            model, (example,), str(path), input_names=["past"], output_names=["future"], dynamo=True,
            dynamic_shapes={"past": {0: batch}}, external_data=False, verbose=False,
        )  # fmt: skip
    return onnx_runner(path)


def onnx_runner(path: Path) -> Callable[[Tensor], Tensor]:
    """The ONNX file at path, run by onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda past: torch.from_numpy(session.run(None, {"past": past.numpy()})[0])


def save_safetensors(weights: Mapping[str, Tensor], config: Mapping, path: Path) -> None:
    """Weights and, as metadata, the flags: a checkpoint that runs no code whoever made it."""
    from safetensors.torch import load_file, save_file

    partial = path.with_name(f".partial.{path.name}")
    copies = {name: value.detach().cpu().clone() for name, value in weights.items()}  # shared ones become two
    try:
        save_file(copies, partial, metadata={"config": json.dumps(dict(config))})
        back = load_file(partial)
        if not all(torch.equal(copies[name], back[name]) for name in copies):
            raise ValueError(f"--output {path}: what was written reads back differently; not kept")
        os.replace(partial, path)  # noqa: PTH105
    finally:
        partial.unlink(missing_ok=True)


def load_safetensors(path: Path) -> dict:
    """What save_safetensors wrote, as a checkpoint {"model", "config"}. Raises ValueError, naming path, for another."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        config = json.loads(metadata["config"])
        if not isinstance(config, dict):
            raise ValueError("its flags are no mapping")
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        reason = "no flags in its metadata" if isinstance(error, KeyError) else str(error).splitlines()[0][:100]
        raise ValueError(f"{path}: not a safetensors file of ours ({reason})") from None
    return {"model": weights, "config": config}
