"""The run folder: results/<ex_name>/ with config.json, log.txt, metrics.jsonl, checkpoints/, test.json, figures/."""

import hashlib
import io
import json
import os
import pickle
import platform
import random
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .export import load_safetensors

MOST_ARRAY_BYTES = 2**34  # that an npz file may unpack to


class Recorder:
    """Owns a run folder. Training enters one with checkpoints in it only to resume, or empties it with overwrite;
    enter is for what only adds to it, such as a test.

    Raises ValueError in one line where it must not or cannot be written to.
    """

    def __init__(self, folder: Path, resume: bool = False, overwrite: bool = False, enter: bool = False) -> None:
        self.folder = Path(folder)
        self.checkpoints, self.figures = self.folder / "checkpoints", self.folder / "figures"
        last = self.checkpoints / "last.pth"
        if last.exists() and not (resume or overwrite or enter):
            raise ValueError(
                f"{self.folder} holds a run already: --resume goes on with it, --overwrite starts it anew, "
                "another --ex_name keeps both"
            )
        try:
            for folder in (self.checkpoints, self.figures):
                folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / ".writable", b"")
            (self.folder / ".writable").unlink()
        except OSError as error:
            raise ValueError(f"--res_dir: cannot write to {self.folder} ({error.strerror})") from None
        if overwrite:
            for old in (*self.checkpoints.glob("*.pth"), self.folder / "metrics.jsonl", self.folder / "log.txt"):
                old.unlink(missing_ok=True)

    def log(self, line: str) -> None:
        """Print a line and keep it in log.txt."""
        print(line, flush=True)
        with (self.folder / "log.txt").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def write_config(self, config: Mapping) -> None:
        """config.json: every flag, and what it ran on."""
        write_json(self.folder / "config.json", {"flags": dict(config), "environment": environment()})

    def epoch(self, record: Mapping) -> None:
        """Add one JSON line to metrics.jsonl."""
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def history(self) -> list[dict]:
        """The epochs so far."""
        path = self.folder / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []

    def forget_after(self, epoch: int) -> None:
        """Drop the records of epochs after `epoch`, written before a crash and about to be trained again."""
        kept = [record for record in self.history() if record["epoch"] <= epoch]
        write_atomically(self.folder / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in kept).encode())


def write_atomically(path: Path, data: bytes) -> None:
    """Write data to path so that path holds, at any instant, either what it held before or all of data."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Arrays as a compressed npz, atomically."""
    data = io.BytesIO()
    np.savez_compressed(data, **arrays)
    write_atomically(path, data.getvalue())


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Every array of an npz. Raises ValueError, naming path, where it is not a sound one of plain numbers."""
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(item.file_size for item in archive.infolist()) > MOST_ARRAY_BYTES:
                raise ValueError(f"unpacks to more than {MOST_ARRAY_BYTES >> 30} GiB")
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as error:
        raise ValueError(f"{path}: not a sound npz file ({error})") from None
    except ValueError as error:
        raise ValueError(f"{path}: {str(error).splitlines()[0][:120]}") from None


def write_json(path: Path, content: Mapping) -> None:
    """Write content as indented JSON, atomically. Raises ValueError for NaN or infinity, which JSON does not have."""
    write_atomically(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


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


def sync_folder(folder: Path) -> None:
    """Make renames in folder survive a power cut, where the system can."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def last_checkpoint(run: Path) -> Path | None:
    """The checkpoint to resume a run folder from: last.pth, or with a warning the one before where that is damaged.

    None where there is none. Raises ValueError where both are damaged.
    """
    last = run / "checkpoints" / "last.pth"
    there = [path for path in (last, previous(last)) if path.is_file()]
    for path in there:
        try:
            load_checkpoint(path)
        except ValueError as error:
            if path is there[-1]:
                raise
            print(f"warning: {error}; going on from {there[-1].name}, the one before it", flush=True)
        else:
            return path
    return None


def load_checkpoint(path: Path) -> dict:
    """The state saved by save_checkpoint, or the mapping in any file of tensors. Never runs code from the file.

    Raises ValueError, in one line that names path, where it is missing, damaged, or no checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint")
    if path.suffix == ".safetensors":
        return load_safetensors(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if zipfile.is_zipfile(path):
            reason = "it holds more than tensors and plain values, and is not run"
        else:
            reason = "not a PyTorch checkpoint"
        raise ValueError(f"{path}: {reason} ({str(error).strip().splitlines()[0][:120]})") from None
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


def environment() -> dict[str, str | None]:
    """What a number was made on: versions, git commit, device."""
    try:
        repo = Path(__file__).parent
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=repo,
            capture_output=True,
            text=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = ""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "command": " ".join(sys.argv),
        "git_commit": commit or None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cuda": torch.version.cuda if gpu else None,
        "gpu": gpu,
        "cpu": f"{cpu_name()}, {os.cpu_count()} cores",
    }


def cpu_name() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def describe_epoch(record: Mapping) -> str:
    """An epoch's numbers in a line."""
    text = f"loss {record['train_loss']:.1f}  lr {record['lr']:.2g}  {record['sequences_per_second']:.1f} sequences/s"
    if "val_mse" in record:
        removed = " ".join(f"{stage['removed']:.1%}" for stage in record["filter"])
        moved = " ".join(f"{stage['threshold_moved']:.3f}" for stage in record["filter"])
        text += f"  validation loss {record['val_loss']:.1f} mse {record['val_mse']:.1f} ssim {record['val_ssim']:.3f}"
        text += f"  filter, by stage: removed {removed}, thresholds moved {moved}"
    return text


def refuse_changed_flags(now: Mapping, then: Mapping, flags: Sequence[str]) -> None:
    """Raise ValueError where a run would not go on as it began."""
    for flag in flags:
        if now[flag] != then.get(flag):
            was = f"this run has {then.get(flag)}"
            raise ValueError(f"--{flag} {now[flag]}: {was}; leave it so to --resume, or take another --ex_name")
