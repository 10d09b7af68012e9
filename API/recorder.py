"""The run folder: results/<ex_name>/ with config.json, log.txt, metrics.jsonl, checkpoints/, test.json, figures/."""

import io
import json
import math
import os
import platform
import struct
import subprocess
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import numpy as np
import torch

from .processes import rank

MOST_ARRAY_BYTES = 2**34  # that an npz file may unpack to


class Recorder:
    """Owns a run folder. Training enters one with checkpoints in it only to resume, or empties it with overwrite;
    enter is for what only adds to it, such as a test.

    Raises ValueError in one line where it must not or cannot be written to.
    """

    def __init__(self, folder: Path, resume: bool = False, overwrite: bool = False, enter: bool = False) -> None:
        self.folder = Path(folder)
        self.checkpoints, self.figures = self.folder / "checkpoints", self.folder / "figures"
        self.bad_batch = self.folder / "bad_batch.npz"
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


def run_of(checkpoint: Path) -> Path | None:
    """The run folder that a checkpoint lies in, RUN/checkpoints/NAME.pth; None where it is not in one."""
    here, folder = Path.cwd(), checkpoint.resolve().parent
    run = folder.parent
    if folder.name != "checkpoints" or not (run / "config.json").is_file():
        return None
    return run.relative_to(here) if here in run.parents else run


class Silent:
    """Stands where a Recorder does in the processes that leave writing to the first one."""

    def __init__(self, folder: Path, *_, **__) -> None:
        self.folder = Path(folder)
        self.checkpoints, self.figures = self.folder / "checkpoints", self.folder / "figures"
        self.bad_batch = self.folder / f"bad_batch.{rank()}.npz"

    def silent(self, *_) -> None:
        """Nothing."""

    log = write_config = epoch = forget_after = silent


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


# What NumPy's and Python's readers raise on damaged files: the header of an array is parsed as Python is.
DAMAGED = (
    ValueError, EOFError, SyntaxError, TypeError, KeyError, OverflowError, RecursionError, MemoryError,
    NotImplementedError, RuntimeError, tokenize.TokenError, zipfile.BadZipFile, zlib.error, struct.error,
)  # fmt: skip


def reason_of(error: Exception) -> str:
    """The start of an error's message, or its kind where it has none; one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Every array of an npz. Raises ValueError, naming path, where it is not a sound one of plain numbers.

    No memory is taken for an array before its header has been found to claim no more than the file holds.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(item.file_size for item in archive.infolist()) > MOST_ARRAY_BYTES:
                raise ValueError(f"unpacks to more than {MOST_ARRAY_BYTES >> 30} GiB")
            for item in archive.infolist():
                with archive.open(item) as file:
                    check_array_header(file, item.file_size)
                with archive.open(item) as file:
                    arrays[item.filename.removesuffix(".npy")] = np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or reason_of(error)}") from None
    except DAMAGED as error:
        raise ValueError(f"{path}: not a sound npz file ({reason_of(error)})") from None
    return arrays


def check_array_header(file: IO[bytes], size: int) -> None:
    """Raise ValueError where an npy file of `size` bytes claims to hold more, or objects."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("Object arrays are not read")
    if math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"an array claims to be {shape} {dtype} in {size} bytes")


def write_json(path: Path, content: Mapping) -> None:
    """Write content as indented JSON, atomically. Raises ValueError for NaN or infinity, which JSON does not have."""
    write_atomically(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


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
