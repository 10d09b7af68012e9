"""Files written whole or not at all, and arrays read with care."""

import contextlib
import errno
import io
import json
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

import numpy as np

from .. import UserError

VERSION = 1  # of what is in a run's json, jsonl and npz files; older ones do not say theirs
MOST_ARRAY_BYTES = 2**34  # that an npz file may unpack to


def sync(handle: int) -> None:
    """fsync of an open file or folder, where its file system can: some network and FUSE ones cannot."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise


def cannot_write(path: Path, error: Exception) -> UserError:
    """What to tell the user of an error in writing path."""
    return UserError(f"cannot write {path} ({getattr(error, 'strerror', None) or reason_of(error)})")


def write_atomically(path: Path, data: bytes) -> None:
    """Write data to path so that path holds, at any instant, either what it held before or all of data.

    Raises UserError, naming path, where it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            sync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        remove(partial)


def append(path: Path, text: str) -> None:
    """Add text to the end of path, and see it on the disk. Raises UserError, naming path, where that fails."""
    try:
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            sync(file.fileno())
    except OSError as error:
        raise cannot_write(path, error) from None


def remove(path: Path) -> None:
    """Remove a file that is left over, if it can be: what was said before matters more."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def save_atomically(path: Path, save: Callable[[IO[bytes]], object]) -> None:
    """write_atomically of what save writes to a file."""
    data = io.BytesIO()
    save(data)
    write_atomically(path, data.getvalue())


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Arrays as a compressed npz, atomically."""
    save_atomically(path, lambda file: np.savez_compressed(file, **arrays))


# What NumPy's and Python's readers raise on damaged files: the header of an array is parsed as Python is.
DAMAGED = (
    ValueError, EOFError, SyntaxError, TypeError, KeyError, OverflowError, RecursionError, MemoryError,
    NotImplementedError, RuntimeError, tokenize.TokenError, zipfile.BadZipFile, zlib.error, struct.error,
)  # fmt: skip


def reason_of(error: Exception) -> str:
    """The start of an error's message, or its kind where it has none; one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Every array of an npz. Raises UserError, naming path, where it is not a sound one of plain numbers."""
    try:
        return unpack(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or reason_of(error)}") from None
    except DAMAGED as error:
        raise UserError(f"{path}: not a sound npz file ({reason_of(error)})") from None


def unpack(path: Path, only: str | None = None) -> dict[str, np.ndarray]:
    """The arrays of an npz, or only the one of that name where it holds it. Raises OSError, or one of DAMAGED.

    No memory is taken for an array before its header has been found to claim no more than the file holds.
    """
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        if sum(item.file_size for item in archive.infolist()) > MOST_ARRAY_BYTES:
            raise ValueError(f"unpacks to more than {MOST_ARRAY_BYTES >> 30} GiB")
        items = {item.filename.removesuffix(".npy"): item for item in archive.infolist()}
        for name, item in {only: items[only]}.items() if only in items else items.items():
            with archive.open(item) as file:
                check_array_header(file, item.file_size)
            with archive.open(item) as file:
                arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
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
