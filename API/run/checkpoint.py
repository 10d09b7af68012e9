"""Checkpoints: written whole or not at all, checked when read, never a program."""

import hashlib
import os
import pickle
import random
import re
import shutil
import time
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import UserError
from ..deploy.hub import WEIGHTS, is_hub, local
from .files import cannot_write, reason_of, remove, sync
from .weights import load_exported, load_safetensors


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


def save_checkpoint(path: Path, state: Mapping, also: Sequence[Path] = ()) -> None:
    """torch.save under a temporary name, fsync, rename: a kill at any instant leaves a whole checkpoint.

    The checkpoint that was at path is kept beside it, see previous. Where the file system has hard links, path is never
    missing; elsewhere (FAT, exFAT, many network drives) it is for an instant, in which the previous one is the newest.
    also: other paths for the same state, there before path is; what they held is not kept.

    Raises UserError where it cannot be written; what was there is untouched then.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            torch.save({**state, "digest": digest(state)}, file)
            file.flush()
            sync(file.fileno())
        for other in also:
            link_or_copy(partial, other)
        if path.exists():
            try:
                link(path, previous(path))
            except OSError:
                path.replace(previous(path))
        partial.replace(path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch's writer says RuntimeError where the disk is full
        raise UserError(f"{cannot_write(path, error)}; the checkpoint before it is untouched") from None
    finally:
        remove(partial)


def link(source: Path, target: Path) -> None:
    """Make target a second name of the file source; what target named before is whole until then.

    Raises OSError where the file system has no hard links.
    """
    temporary = target.with_name(target.name + ".link")
    try:
        temporary.unlink(missing_ok=True)
        os.link(source, temporary)
        temporary.replace(target)
    finally:
        remove(temporary)


def link_or_copy(source: Path, target: Path) -> None:
    """link, or where there are no hard links a copy."""
    try:
        link(source, target)
    except OSError:
        temporary = target.with_name(target.name + ".partial")
        try:
            shutil.copyfile(source, temporary)
            with temporary.open("rb+") as file:
                sync(file.fileno())
            temporary.replace(target)
        finally:
            remove(temporary)


class Saver:
    """Writes checkpoints while training goes on, one after the other.

    save returns once the tensors are copied to host memory, from a GPU once the copies are on their way; it waits only
    for a write before that is still going on. Leaving the context waits for the last write. A write that failed raises
    its UserError at the next call.
    """

    def __init__(self, writes: bool = True) -> None:
        """writes: False in the processes that leave it to another."""
        self.writes, self.thread = writes, ThreadPoolExecutor(1)
        self.writing: Future | None = None

    def save(self, state: Mapping, *paths: Path) -> None:
        """Write state, as it is now, once, and give it every path, the last one last, see save_checkpoint."""
        if not self.writes:
            return
        self.wait()
        gpus: set[torch.device] = set()
        copy = on_host(state, gpus)
        copied = [torch.cuda.current_stream(gpu).record_event() for gpu in gpus]
        self.writing = self.thread.submit(self.write, copy, copied, paths)

    @staticmethod
    def write(state: Mapping, copied: Sequence[torch.cuda.Event], paths: Sequence[Path]) -> None:
        """In the other thread. copied: when state is there."""
        for event in copied:
            event.synchronize()
        *also, path = paths
        save_checkpoint(path, state, also)

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
        except UserError:
            if kind is None:  # otherwise another mistake is on its way out, and came first
                raise
        finally:
            self.thread.shutdown()


def on_host(value: object, gpus: set[torch.device]) -> object:
    """Nested mappings, sequences and tensors, with a copy of every tensor in host memory.

    Copies from a GPU go to pinned memory, in the order of its current stream, and nothing waits for them: later steps
    may change the tensors, but the copies must not be read before that stream has come so far. Their GPUs are added to
    gpus.
    """
    if isinstance(value, Tensor):
        value = value.detach()
        if not value.is_cuda:
            return value.to("cpu", copy=True)
        gpus.add(value.device)
        pinned = torch.empty_like(value, device="cpu", pin_memory=True)
        return pinned.copy_(value, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: on_host(item, gpus) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(on_host(item, gpus) for item in value)
    return value.item() if isinstance(value, np.generic) else value  # which a schedule with NumPy in it leaves behind


def sync_folder(folder: Path) -> None:
    """Make renames in folder survive a power cut, where the system can."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            sync(handle)
        finally:
            os.close(handle)


def last_checkpoint(run: Path) -> tuple[Path, dict] | None:
    """The checkpoint to resume a run folder from, and its state: last.pth, or where that is damaged the one before.

    It warns in that case. None where there is none. Raises UserError where both are damaged.
    """
    last = run / "checkpoints" / "last.pth"
    there = [path for path in (last, previous(last)) if path.is_file()]
    for path in there:
        try:
            return path, load_checkpoint(path)
        except UserError as error:
            if path is there[-1]:
                raise
            print(f"warning: {error}; going on from {there[-1].name}, the one before it", flush=True)
    return None


def load_checkpoint(checkpoint: str | Path) -> dict:
    """The state saved by save_checkpoint, or the mapping in any file of tensors. Never runs code from the file.

    checkpoint: a file, a folder as export writes it, or hf://owner/name[@revision].
    Raises UserError, in one line that names it, where it is missing, damaged, or no checkpoint.
    """
    path = local(checkpoint)
    if is_hub(checkpoint) or (path / WEIGHTS).is_file():
        return load_exported(path, checkpoint)
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give a checkpoint, such as {path / 'checkpoints/best.pth'}")
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
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
        raise UserError(f"{path}: {reason}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or reason_of(error)})") from None
    except Exception as error:  # a damaged zip archive fails in many ways
        raise UserError(f"{path}: damaged or not a PyTorch checkpoint ({type(error).__name__})") from None
    if not isinstance(state, dict):
        raise UserError(f"{path}: not a checkpoint, it holds a {type(state).__name__}")
    stored = state.pop("digest", None)
    if stored is not None and stored != digest(state):
        raise UserError(f"{path}: damaged, its contents do not match its checksum")
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
