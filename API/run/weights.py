"""Weights as safetensors files."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


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
