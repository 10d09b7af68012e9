"""Weights as users have them: under wrappers' names, bare, in safetensors files; and what in them does not fit."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import UserError
from ..deploy.hub import FLAGS, WEIGHTS
from .files import cannot_write, reason_of, remove

# What wrappers add to the names of parameters: DataParallel and DistributedDataParallel, torch.compile, FSDP,
# activation checkpointing.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
PLACES = ("model", "state_dict", "net")  # ours, Lightning's, the authors'


def plain_name(name: str) -> str:
    """A parameter's name in the model itself: 'module.decoder._orig_mod.readout.bias' -> 'decoder.readout.bias'."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def as_checkpoint(state: Mapping, path: str | Path) -> dict:
    """What a file of weights holds -> {"model": {plain name: tensor}, "config": flags or None, and what else it held}.

    The weights lie under "model", "state_dict" or "net", or are all that there is. path: for the message.
    Raises UserError where there are none.
    """
    place = next((key for key in PLACES if isinstance(state.get(key), Mapping)), None)
    found = state if place is None else state[place]
    tensors = {name: value for name, value in found.items() if isinstance(name, str) and isinstance(value, Tensor)}
    weights = {plain_name(name): value for name, value in tensors.items()}
    if not weights or len(weights) < len(tensors):
        reason = "some twice, wrapped and not" if weights else "neither a state dict nor one under 'model' or 'net'"
        raise UserError(f"{path}: not the weights of a model ({reason})")
    config = state.get("config")
    rest = {} if place is None else {key: value for key, value in state.items() if key != place}
    return {**rest, "model": weights, "config": dict(config) if isinstance(config, Mapping) else None}


def load_into(model: nn.Module, weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Load weights into model. Raises UserError with the first name that is missing, of another shape, or left over."""
    if reason := first_misfit(model.state_dict(), weights):
        raise UserError(f"{path}: does not fit the model of these flags: {reason}")
    model.load_state_dict(weights)


def load_fitting(model: nn.Module, weights: Mapping[str, Tensor], path: str | Path) -> str:
    """Load the weights that fit model by name and shape, and say which these are. path: for the message.

    Raises UserError, with the first name that does not fit, where fewer than half of the tensors do: of the model's,
    or of the weights if these are fewer, as those of a shallower model are.
    """
    expected = model.state_dict()
    fit = {name: v for name, v in weights.items() if name in expected and v.shape == expected[name].shape}
    if 2 * len(fit) < min(len(expected), len(weights)):
        few = f"{len(fit)} of {len(expected)} tensors fit, too few to start from"
        raise UserError(f"{path}: does not fit the model of these flags: {first_misfit(expected, weights)}; {few}")
    model.load_state_dict(fit, strict=False)
    if len(fit) == len(expected) == len(weights):
        return f"{path}: all {len(fit)} tensors fit"
    rest = {"start anew": expected.keys() - fit.keys(), "are not in this model": weights.keys() - expected.keys()}
    parts = [f"{patterns(names)} {what}" for what, names in rest.items() if names]
    return f"{path}: {len(fit)} of the model's {len(expected)} tensors fit; {'; '.join(parts)}"


def patterns(names: Iterable[str], most: int = 8) -> str:
    """Names with * for their numbers and how many are alike: 'temporal.stages.*.*.reduction.*.weight (8), …'."""
    alike = Counter(re.sub(r"\d+", "*", name[:100]) for name in sorted(names))
    some = ", ".join(f"{pattern} ({n})" for pattern, n in list(alike.items())[:most])
    return some + (f" and {len(alike) - most} more kinds" if len(alike) > most else "")


def first_misfit(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> str | None:
    """In words, the first difference in names or shapes; None if there is none."""
    for name, value in expected.items():
        if name not in weights:
            return f"'{name}' is missing"
        if weights[name].shape != value.shape:
            return f"'{name}' is {tuple(weights[name].shape)}, the model's is {tuple(value.shape)}"
    left = next((name for name in weights if name not in expected), None)
    return left and f"'{left[:100]}' has no place in the model"


def save_safetensors(weights: Mapping[str, Tensor], config: Mapping, path: Path) -> None:
    """Weights and, as metadata, the flags: a checkpoint that runs no code whoever made it.

    Raises UserError where it cannot be written, and what was at path stays.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    partial = path.with_name(f".partial.{path.name}")
    copies = {name: value.detach().cpu().clone() for name, value in weights.items()}  # shared ones become two
    try:
        save_file(copies, partial, metadata={"config": json.dumps(dict(config))})
        back = load_file(partial)
        if not all(torch.equal(copies[name], back[name]) for name in copies):
            raise UserError(f"--output {path}: what was written reads back differently; not kept")
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"--output: {cannot_write(path, error)}") from None
    finally:
        remove(partial)


def load_safetensors(path: Path) -> dict:
    """{"model": the tensors of a safetensors file, "config": the flags in its metadata, None where it has none}.

    Of tensors that share memory safetensors' save_model writes one, and the names of the others as metadata.
    Raises UserError, naming path, where it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        weights |= {name: weights[kept] for name, kept in metadata.items() if kept in weights}
        config = json.loads(metadata["config"]) if "config" in metadata else None
        if not isinstance(config, dict | None):
            raise ValueError("its flags are no mapping")
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a safetensors file of ours ({reason_of(error)})") from None
    return {"model": weights, "config": config}


def load_exported(folder: Path, name: str | Path) -> dict:
    """{"model": weights, "config": flags} of a folder as export and push_to_hub write it. name: for messages.

    Raises UserError where a file of it is missing or damaged.
    """
    for file in (FLAGS, WEIGHTS):
        if not (folder / file).is_file():
            raise UserError(f"{name}: holds no {file}, so it is no model of ours")
    try:
        config = json.loads((folder / FLAGS).read_text("utf-8"))
        if not isinstance(config, dict):
            raise ValueError("its flags are no mapping")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{folder / FLAGS}: damaged ({reason_of(error)})") from None
    return load_safetensors(folder / WEIGHTS) | {"config": config}
