"""Files of arrays: npy and h5 are read where they are asked for, npz whole, NetCDF and zarr by xarray."""

import os
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from .. import UserError
from ..run.files import DAMAGED, reason_of, unpack
from .clip import BadClip, Clip, Unreadable
from .layout import Sequences, check_layout
from .order import natural
from .reading import CACHE_TAG, CACHED, places

H5, XARRAY = (".h5", ".hdf5", ".hdf"), (".nc", ".nc4", ".zarr")
KINDS = (".npy", ".npz", *H5, *XARRAY)
OPEN = 32  # files held open, see ClipCache


def find_arrays(path: Path, flag: str = "--data_root") -> list[Clip]:
    """The file of arrays at path, or all in that folder and the folders in it, in a fixed order. What this program has
    written there, runs and cached frames, is none. Raises UserError, naming flag and path, where there is none."""
    known = f"looked for {' '.join(KINDS)}"
    if not path.exists():
        raise UserError(f"{flag} {path}: no such file or folder")
    if path.suffix.lower() in KINDS:
        return [clip_of(path, path.name)]
    if not path.is_dir():
        raise UserError(f"{flag} {path}: unknown kind of file, {known}")
    found = []
    for place in places(path, closed=KINDS):
        try:
            inside = [p for p in place.iterdir() if p.suffix.lower() in KINDS and p.name[0] != "."]
        except OSError as error:
            raise UserError(f"{flag} {place}: {error.strerror}") from None
        cached = (place / CACHE_TAG).exists()
        found += [p for p in inside if not (cached and CACHED.fullmatch(p.name))]
    if not found:
        raise UserError(f"{flag} {path}: no arrays in it, {known}")
    clips = [clip_of(p, p.relative_to(path).as_posix()) for p in found]
    return sorted(clips, key=lambda clip: natural(clip.name))


def clip_of(path: Path, name: str) -> Clip:
    """A file, or a folder that is one array: a zarr store."""
    return Clip(path, name, tuple(sorted(p for p in path.rglob("*") if p.is_file())) if path.is_dir() else ())


def open_arrays(path: Path, variable: str | None = None, layout: str | None = None, **options) -> Sequences:
    """The sequences in a file. variable: the array's name, where the file holds several. options: of Sequences.

    Raises BadClip, naming path, where it cannot be read, UserError for a package that is missing.
    """
    by_process = 0 if path.suffix.lower() in (".npy", ".npz") else os.getpid()  # handles of HDF5 do not survive a fork
    axes = len(check_layout(layout)) if layout else None
    source, name, missing = source_of(path, variable, axes, by_process, stamp(path))
    where = f"{path}: {name}" if name else str(path)
    return Sequences(source, where, name, layout, missing=missing, **options)


def stamp(path: Path) -> tuple[int, int]:
    """Changes when a file does. Raises Unreadable, naming path, where it cannot be seen."""
    try:
        status = path.stat()
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from None
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=OPEN)
def source_of(path: Path, variable: str | None, axes: int | None, *_) -> tuple[Any, str, tuple[float, ...]]:
    """(what has a shape, a dtype and numpy's indexing, its name, values that stand for missing ones)."""
    kind = path.suffix.lower()
    try:
        if kind == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if not isinstance(array, np.ndarray):
                raise ValueError("an archive; call it .npz")
            return array, "", ()
        if kind == ".npz":
            arrays = unpack(path, variable)
            name = choose(path, arrays, variable, axes)
            return arrays[name], name, ()
        return from_h5(path, variable, axes) if kind in H5 else from_xarray(path, variable, axes)
    except OSError as error:
        if error.errno is None:  # h5py's own, of what is in the file
            raise BadClip(f"{path}: not a sound {kind[1:]} file ({reason_of(error)})") from None
        raise Unreadable(f"{path}: {error.strerror or reason_of(error)}") from None
    except UserError:
        raise
    except DAMAGED as error:
        raise BadClip(f"{path}: not a sound {kind[1:]} file ({reason_of(error)})") from None


def from_h5(path: Path, variable: str | None, axes: int | None) -> tuple[Any, str, tuple[float, ...]]:
    """A dataset of an HDF5 file, of any group."""
    import h5py

    found = {}
    file = h5py.File(path, "r")
    file.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
    name = choose(path, found, variable and variable.strip("/"), axes)
    data, attributes = found[name], found[name].attrs
    if attributes.get("scale_factor", 1) != 1 or attributes.get("add_offset", 0) != 0:
        raise BadClip(f"{path}: {name} is packed (scale_factor, add_offset): unpack it, or name the file .nc")
    marks = [attributes[mark] for mark in ("_FillValue", "missing_value") if mark in attributes]
    return data, named(name, attributes), tuple(float(np.ravel(mark)[0]) for mark in marks)


def from_xarray(path: Path, variable: str | None, axes: int | None) -> tuple[Any, str, tuple[float, ...]]:
    """A variable of a NetCDF file or zarr store, in its own units, NaN where it is missing."""
    try:
        import xarray
    except ImportError:
        raise UserError(f"{path}: xarray, which reads it, is missing: pip install xarray h5netcdf zarr") from None
    try:
        engine = dict(engine="zarr", consolidated=False) if path.suffix.lower() == ".zarr" else {}
        data = xarray.open_dataset(path, decode_times=False, cache=False, **engine)
    except (ImportError, ValueError):
        what = "zarr" if engine else "h5netcdf"
        if find_spec(what) is None:
            raise UserError(f"{path}: xarray cannot read it without a further package: pip install {what}") from None
        raise
    name = choose(path, data.data_vars, variable, axes)
    return data[name], named(name, data[name].attrs), ()


def named(name: str, attributes: Mapping) -> str:
    """What values are called, with their unit where the file says it: air_temperature (K)."""
    return f"{name} ({attributes['units']})" if "units" in attributes else name


def choose(path: Path, arrays: Mapping, variable: str | None, axes: int | None) -> str:
    """The array's name: variable, or else the only one of so many axes. Raises BadClip, naming them, for none."""
    fitting = [str(name) for name, a in arrays.items() if (len(a.shape) == axes if axes else len(a.shape) in (3, 4, 5))]
    numbers = [name for name in fitting if np.dtype(arrays[name].dtype).kind in "fiub"]
    if variable is not None and variable not in arrays:
        raise BadClip(f"{path}: has no --variable {variable}, but {', '.join(map(str, arrays)) or 'nothing'}")
    if variable is None and len(numbers) != 1:
        held = ", ".join(f"{name} {tuple(arrays[name].shape)}" for name in numbers or map(str, arrays))
        many = (
            "holds several arrays, choose one by --variable"
            if numbers
            else f"holds no array of {axes or '3 to 5'} axes"
        )
        raise BadClip(f"{path}: {many}: {held or 'nothing'}")
    return variable or numbers[0]
