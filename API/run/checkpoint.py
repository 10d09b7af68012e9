"""Checkpoints: written whole or not at all, checked when read, never a program."""

import hashlib
import os
import pickle
import random
import re
import time
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .weights import load_safetensors


class SaveEvery:
    """--save_every: called after a step, says whether to save: every so many steps ("500") or minutes ("10m")."""

    def __init__(self, every: str | None) -> None:
        minutes = every is not None and every.endswith("m")
        self.steps = None if every is None or minutes else int(every)
        self.seconds = float(every[:-1]) * 60 if minutes else None
        self.last = time.monotonic()

    def __call__(self, step: int) -> bool:
        if self.seconds is not None and time.monotonic() - self.last >= self.seconds:
            self.last = time.monotonic()
            return True
        return self.steps is not None and step % self.steps == 0


def previous(path: Path) -> Path:
    """Where the checkpoint before the one at path is kept: last.pth -> last.previous.pth."""
    return path.with_suffix(f".previous{path.suffix}")


def save_checkpoint(path: Path, state: Mapping) -> None:
    """torch.save under a temporary name, fsync, rename: a kill at any instant leaves a whole checkpoint under path.

    The checkpoint that was there is kept beside it, see previous. Raises ValueError where it cannot be written; what
    was there is untouched then.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            torch.save({**state, "digest": digest(state)}, file)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            link = path.with_name(path.name + ".link")
            link.unlink(missing_ok=True)
            os.link(path, link)  # so that path itself is never missing
            link.replace(previous(path))
        partial.replace(path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch's writer says RuntimeError where the disk is full
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise ValueError(f"cannot write {path} ({reason}); the checkpoint before it is untouched") from None
    finally:
        partial.unlink(missing_ok=True)


class Saver:
    """Writes checkpoints while training goes on, one after the other.

    save waits no longer than copying the tensors to host memory takes, unless the write before is still going on.
    Leaving the context waits for the last write. A write that failed raises its ValueError at the next call.
    """

    def __init__(self, writes: bool = True) -> None:
        """writes: False in the processes that leave it to another."""
        self.writes, self.thread = writes, ThreadPoolExecutor(1)
        self.writing: Future | None = None

    def save(self, state: Mapping, *paths: Path) -> None:
        """Write state, as it is now, to every path."""
        if not self.writes:
            return
        self.wait()
        self.writing = self.thread.submit(self.write, on_host(state), paths)

    @staticmethod
    def write(state: Mapping, paths: Sequence[Path]) -> None:
        """In the other thread."""
        for path in paths:
            save_checkpoint(path, state)

    def wait(self) -> None:
        """Until nothing is left to write."""
        if self.writing is not None:
            writing, self.writing = self.writing, None
            writing.result()

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        try:
            self.wait()
        except ValueError:
            if kind is None:  # otherwise another mistake is on its way out, and came first
                raise
        finally:
            self.thread.shutdown()


def on_host(value: object) -> object:
    """Nested mappings, sequences and tensors, with a copy of every tensor in host memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: on_host(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(on_host(item) for item in value)
    return value


def sync_folder(folder: Path) -> None:
    """Make renames in folder survive a power cut, where the system can."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def last_checkpoint(run: Path) -> tuple[Path, dict] | None:
    """The checkpoint to resume a run folder from, and its state: last.pth, or where that is damaged the one before.

    It warns in that case. None where there is none. Raises ValueError where both are damaged.
    """
    last = run / "checkpoints" / "last.pth"
    there = [path for path in (last, previous(last)) if path.is_file()]
    for path in there:
        try:
            return path, load_checkpoint(path)
        except ValueError as error:
            if path is there[-1]:
                raise
            print(f"warning: {error}; going on from {there[-1].name}, the one before it", flush=True)
    return None


def load_checkpoint(path: Path) -> dict:
    """The state saved by save_checkpoint, or the mapping in any file of tensors. Never runs code from the file.

    Raises ValueError, in one line that names path, where it is missing, damaged, or no checkpoint.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; give a checkpoint, such as {path / 'checkpoints/best.pth'}")
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint")
    if path.suffix == ".safetensors":
        return load_safetensors(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        unwanted = re.search(r"GLOBAL ([\w.]{1,100})", str(error))
        reason = "not a PyTorch checkpoint"
        if unwanted or zipfile.is_zipfile(path):
            what = f" ({unwanted[1]})" if unwanted else ""
            reason = f"it holds more than tensors and plain values{what}, and is not run"
        raise ValueError(f"{path}: {reason}") from None
    except Exception as error:  # a damaged zip archive fails in many ways
        raise ValueError(f"{path}: damaged or not a PyTorch checkpoint ({type(error).__name__})") from None
    if not isinstance(state, dict):
        raise ValueError(f"{path}: not a checkpoint, it holds a {type(state).__name__}")
    stored = state.pop("digest", None)
    if stored is not None and stored != digest(state):
        raise ValueError(f"{path}: damaged, its contents do not match its checksum")
    return state


def digest(state: object) -> str:
    """SHA-256 of nested mappings, sequences, tensors and plain values."""
    sha = hashlib.sha256()

    def feed(value: object) -> None:
        if isinstance(value, Tensor):
            sha.update(f"{value.dtype}{tuple(value.shape)}".encode())
            flat = value.detach().cpu().contiguous().view(-1)
            sha.update(memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else b"")
        elif isinstance(value, Mapping):
            for key, item in value.items():
                sha.update(repr(key).encode())
                feed(item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                feed(item)
        else:
            sha.update(repr(value).encode())

    feed(state)
    return sha.hexdigest()


def random_states() -> dict:
    """The state of every random generator that code under the loop could draw from, as tensors and plain values."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - the global one, which other packages use
    return {
        "python": random.getstate(),
        "numpy": [kind, keys.tolist(), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: Mapping) -> None:
    """Undo what was drawn since random_states."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(tuple(states["numpy"]))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
