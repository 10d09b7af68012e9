"""Feed damaged and hostile files to every reader, and see that each is read or refused in one clear line.

    python benchmarks/fuzz.py [--files 10000] [--seed 1] [--only pth h5 …]

Sound files of every format are made, then mutated: bits flipped, bytes overwritten (in the header above all), pieces
cut out, doubled or put elsewhere, numbers made huge; of archives also what is inside, the checksums made right again.
Each is read in a process with a limit on memory and time. A reader may return, or raise UserError or OSError in one
line that names the file. Anything else fails: another exception, a crash, more than 10 seconds, more than 2 GiB. Prints
what it saw, and writes benchmarks/results/fuzz.json. Exit code 1 where something failed.
"""

import argparse
import collections
import gzip
import io
import multiprocessing
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import h5py
import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from API import UserError
from API.clips.reading import Clip, read_frames
from API.datasets import human, kth, mmnist, taxibj
from API.run.checkpoint import load_checkpoint, save_checkpoint
from API.run.files import read_arrays
from API.run.recorder import read_records
from API.run.release import convert_release, infer_args, infer_release_args, is_release, release_name
from API.run.weights import as_checkpoint, load_into, save_safetensors
from benchmarks.record import RESULTS, write_result
from DFDNet import DFDNet

MEMORY, SECONDS = 2**31, 10.0
TINY = dict(in_shape=(2, 1, 16, 16), out_shape=(2, 1, 16, 16), hid_S=4, layer_config=(0, 0, 0, 1), segments=(4, 4))


def read_clip(path: Path) -> None:
    """All frames."""
    for _ in read_frames(Clip(path, path.name, size=(16, 24) if path.suffix == ".yuv" else None)):
        pass


def read_image_folder(path: Path) -> None:
    """A clip of one image."""
    for _ in read_frames(Clip(path.parent, path.name, images=(path,))):
        pass


def start_from(path: Path) -> None:
    """Weights without flags, ours or the authors', into a model: as core.py does it, which puts the path before it."""
    weights = as_checkpoint(load_checkpoint(path), path)["model"]
    try:
        release = is_release(weights)
        args = infer_release_args(weights) if release else infer_args(weights)
        if args.get("in_shape", (99,))[0] < 64 and args["hid_S"] < 512 and args["layer"] < 9:
            model = model_of(TINY | args)
            load_into(model, convert_release(weights, model) if release else weights, path)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def model_of(args: dict) -> DFDNet:
    """Raises UserError for sizes that do not fit together."""
    try:
        return DFDNet(**args)
    except ValueError as error:
        raise UserError(str(error)) from None


READERS: dict[str, Callable[[Path], object]] = {
    "png": read_image_folder, "jpg": read_image_folder, "bmp": read_image_folder, "tif": read_image_folder,
    "webp": read_image_folder, "gif": read_clip, "avi": read_clip, "mp4": read_clip, "mkv": read_clip,
    "npy": read_clip, "yuv": read_clip, "idx.gz": mmnist.read_idx_images, "sequences.npy": mmnist.read_sequences,
    "npz": taxibj.read_npz, "predictions.npz": read_arrays, "h5": taxibj.read_h5, "pth": load_checkpoint,
    "release.pth": start_from, "bare.pth": start_from, "metrics.jsonl": read_records,
    "safetensors": load_checkpoint, "kth.txt": kth.read_ranges, "human.txt": human.read_list,
}  # fmt: skip


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
    assert files.keys() == READERS.keys()
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


def judge(path: Path, kind: str) -> str:
    """Read one file: "read", "refused", or what was wrong."""
    try:
        READERS[kind](path)
    except (UserError, OSError) as error:
        text = str(error)
        if "\n" in text or path.name not in text:
            return f"{type(error).__name__}, not one line that names the file: {text[:300]!r}"
        return "refused"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    return "read"


def worker(pipe, folder: Path, sound: dict[str, bytes], args: argparse.Namespace, start: int) -> None:
    """Judge the files from `start` on; says each one's number before, and the outcome after."""
    warnings.simplefilter("ignore")
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)  # decoders complain there
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    for number, kind, data in cases(sound, args.files, args.seed, args.only):
        if number < start:
            continue
        path = folder / f"file.{kind}"
        path.write_bytes(data)
        pipe.send((number, None))
        pipe.send((number, judge(path, kind)))
    pipe.send((args.files, None))


def run() -> int:
    """Mutate, read, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=READERS, default=[])
    parser.add_argument("--keep", type=Path, help="a folder for the files that failed")
    parser.add_argument("--output", type=Path, default=RESULTS / "fuzz.json")
    args = parser.parse_args()
    context, began = multiprocessing.get_context("fork"), time.monotonic()
    outcomes: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    failures, slowest = [], 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sound = sound_files(folder)
        for kind, data in sound.items():  # what is sound must be read
            path = folder / f"sound.{kind}"
            path.write_bytes(data)
            assert (outcome := judge(path, kind)) == "read", (kind, outcome)
        kinds = [kind for kind in sound if not args.only or kind in args.only]
        start = 0
        while start < args.files:
            pipe, theirs = context.Pipe(duplex=False)
            process = context.Process(target=worker, args=(theirs, folder, sound, args, start))
            process.start()
            theirs.close()
            number, since, wrong = start, time.monotonic(), None
            while wrong is None:
                if not pipe.poll(max(0.0, since + SECONDS - time.monotonic())):
                    process.kill()
                    wrong = f"took longer than {SECONDS:.0f} s"
                    break
                try:
                    number, outcome = pipe.recv()
                except EOFError:
                    process.join()
                    code = process.exitcode
                    wrong = f"crashed: {signal.Signals(-code).name if code < 0 else code}"
                    break
                if outcome is None:
                    since, start = time.monotonic(), number
                    if number == args.files:
                        break
                    continue
                slowest = max(slowest, time.monotonic() - since)
                kind = kinds[number % len(kinds)]
                good = outcome in ("read", "refused")
                outcomes[kind][outcome if good else "failed"] += 1
                if not good:
                    failures.append({"file": number, "format": kind, "what": outcome})
            process.join()
            if wrong is not None:
                kind = kinds[number % len(kinds)]
                outcomes[kind]["failed"] += 1
                failures.append({"file": number, "format": kind, "what": wrong})
                start = number + 1
        if args.keep and failures:
            args.keep.mkdir(parents=True, exist_ok=True)
            bad = {failure["file"] for failure in failures}
            for number, kind, data in cases(sound, args.files, args.seed, args.only):
                if number in bad:
                    (args.keep / f"{number}.{kind}").write_bytes(data)
    for kind in kinds:
        print(f"{kind:<16}" + "  ".join(f"{what} {n}" for what, n in sorted(outcomes[kind].items())))
    for failure in failures[:40]:
        print(f"FAILED file {failure['file']} ({failure['format']}): {failure['what']}")
    seconds = time.monotonic() - began
    print(f"{args.files} files in {seconds:.0f} s, the slowest {slowest:.2f} s: {len(failures)} failed")
    result = {"files": args.files, "seconds": seconds, "slowest": slowest, "outcomes": outcomes, "failures": failures}
    write_result(args.output, result, args.seed)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(run())
