"""Small sound files of every format that is read, and damaged ones made of them, for fuzz.py."""

import gzip
import io
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import h5py
import numpy as np
import torch
import xarray
from PIL import Image

from API.datasets import taxibj
from API.run.checkpoint import save_checkpoint
from API.run.release import release_name
from API.run.weights import save_safetensors
from DFDNet import DFDNet

TINY = dict(in_shape=(2, 1, 16, 16), out_shape=(2, 1, 16, 16), hid_S=4, layer_config=(0, 0, 0, 1), segments=(4, 4))


def sound_files(folder: Path) -> dict[str, bytes]:
    """A small sound file of every format."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:16, :24]
    frames = [np.stack([(x * 9 + k * 5) % 256, (y * 13) % 256, (x + y) * 5], -1).astype(np.uint8) for k in range(4)]
    files: dict[str, bytes] = {}
    for kind in ("png", "jpg", "bmp", "tif", "webp"):
        data = io.BytesIO()
        Image.fromarray(frames[0]).save(data, {"jpg": "jpeg", "tif": "tiff"}.get(kind, kind))
        files[kind] = data.getvalue()
    data = io.BytesIO()
    first, *rest = [Image.fromarray(frame) for frame in frames]
    first.save(data, "gif", save_all=True, append_images=rest)
    files["gif"] = data.getvalue()
    for kind, codec in (("avi", "MJPG"), ("mp4", "mp4v"), ("mkv", "MJPG")):
        path = folder / f"sound.{kind}"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 25, (24, 16))
        for frame in frames:
            writer.write(frame)
        writer.release()
        files[kind] = path.read_bytes()

    def saved(save: Callable, *args, **kwargs) -> bytes:
        data = io.BytesIO()
        save(data, *args, **kwargs)
        return data.getvalue()

    files["npy"] = saved(np.save, np.stack(frames))
    files["yuv"] = b"".join(cv2.cvtColor(f, cv2.COLOR_RGB2YUV_I420).tobytes() for f in frames)
    idx = np.array([2051, 5, 28, 28], ">i4").tobytes() + rng.integers(0, 256, 5 * 784, np.uint8).tobytes()
    files["idx.gz"] = gzip.compress(idx)
    files["sequences.npy"] = saved(np.save, rng.integers(0, 256, (20, 2, 64, 64), np.uint8))
    flows = {name: rng.uniform(-1, 1, (3, 4, 2, 32, 32)).astype(np.float32) for name in taxibj.ARRAYS}
    files["npz"] = saved(np.savez_compressed, **flows)
    files["predictions.npz"] = saved(np.savez, future=flows["X_test"], predicted=flows["Y_test"])
    with h5py.File(folder / "sound.h5", "w") as file:
        file["data"] = rng.uniform(0, 99, (6, 2, 32, 32)).astype(np.float32)
        file["date"] = np.array([b"2013070101", b"2013070102", b"2013070103"] * 2)
    files["h5"] = (folder / "sound.h5").read_bytes()
    values = flows["X_train"]
    files["array.npy"] = saved(np.save, values)
    files["array.npz"] = saved(np.savez_compressed, t2m=values, lat=np.arange(32))
    with h5py.File(folder / "array.h5", "w") as file:
        file.create_dataset("group/t2m", data=values, chunks=(1, 2, 2, 16, 16), compression="gzip")
        file["group/t2m"].attrs["_FillValue"] = np.float32(-99)
    files["array.h5"] = (folder / "array.h5").read_bytes()
    xarray.Dataset({"t2m": (tuple("NTCHW"), values)}).to_netcdf(folder / "array.nc", engine="h5netcdf")
    files["array.nc"] = (folder / "array.nc").read_bytes()
    torch.manual_seed(0)
    model = DFDNet(**TINY)
    save_checkpoint(folder / "sound.pth", {"model": model.state_dict(), "epoch": 1, "config": {"lr": 0.1, "s": [1]}})
    files["pth"] = (folder / "sound.pth").read_bytes()
    theirs = {release_name(name): value for name, value in DFDNet(**TINY, release=True).state_dict().items()}
    files["release.pth"] = saved(lambda data: torch.save({"net": theirs}, data))
    files["bare.pth"] = saved(lambda data: torch.save(model.state_dict(), data))
    files["metrics.jsonl"] = b"".join(b'{"epoch": %d, "train_loss": 12.5, "val_mse": 1e-3}\n' % k for k in range(1, 9))
    save_safetensors(model.state_dict(), {"lr": 0.1}, folder / "sound.safetensors")
    files["safetensors"] = (folder / "sound.safetensors").read_bytes()
    files["kth.txt"] = b"person01_boxing_d1\tframes\t1-95, 96-185, 186-245, 246-360\n" * 4
    files["human.txt"] = b"images/S1_Directions.54138969_,226,296\nimages/S9_Walking.60457274_,1,71\n" * 4
    return files


def mutate(data: bytes, chance: random.Random) -> bytes:
    """One to eight changes."""
    data = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        if not data:
            break
        at = chance.randrange(min(len(data), chance.choice((32, 256, len(data)))))
        length = chance.choice((1, 2, 4, 8, 64, 1024))
        change = chance.randrange(8)
        if change == 0:
            data[at] ^= 1 << chance.randrange(8)
        elif change == 1:
            data[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        elif change == 2:
            data[at : at + length] = chance.randbytes(length)
        elif change == 3:
            del data[at : at + length]
        elif change == 4:
            del data[at:]
        elif change == 5:
            other = chance.randrange(len(data))
            data[at:at] = data[other : other + length]
        elif change == 6:  # a number as headers have them, huge or negative
            number = chance.choice((2**31 - 1, 2**32 - 1, 2**63 - 1, 2**40, 2**24, 0))
            kind = chance.choice(("<Q", ">Q", "<I", ">I"))
            packed = struct.pack(kind, number & (2 ** (8 * struct.calcsize(kind)) - 1))
            data[at : at + len(packed)] = packed
        else:  # decimals in texts and pickles
            digits = [i for i, byte in enumerate(data[:4096]) if 48 <= byte <= 57]
            if digits:
                place = chance.choice(digits)
                data[place : place + 1] = chance.choice((b"9", b"-", b"0", b"99999999999", b"1e99"))
    return bytes(data)


def mutate_inside(kind: str, data: bytes, chance: random.Random) -> bytes:
    """What an archive holds changed, and packed again with sound checksums."""
    if kind == "idx.gz":
        return gzip.compress(mutate(gzip.decompress(data), chance))
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target:
        names = source.namelist()
        chosen = chance.choice([n for n in names if n.endswith(".pkl")] or names) if chance.random() < 0.7 else None
        for name in names:
            content = source.read(name)
            changed = mutate(content, chance) if name == (chosen or chance.choice(names)) else content
            method = zipfile.ZIP_STORED if kind.endswith("pth") else zipfile.ZIP_DEFLATED
            target.writestr(name, changed, method)
    return out.getvalue()


def cases(sound: dict[str, bytes], count: int, seed: int, only: list[str]) -> Iterator[tuple[int, str, bytes]]:
    """(number, format, content) of every mutated file; a pure function of its number."""
    kinds = [kind for kind in sound if not only or kind in only]
    for number in range(count):
        chance = random.Random(f"{seed}/{number}")
        kind = kinds[number % len(kinds)]
        archive = kind == "idx.gz" or kind.endswith(("npz", "pth"))
        inside = archive and chance.random() < 0.5
        data = mutate_inside(kind, sound[kind], chance) if inside else mutate(sound[kind], chance)
        yield number, kind, data
