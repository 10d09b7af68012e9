"""Feed damaged and hostile files to the readers of clips, arrays, data sets, checkpoints and results, and see that each
is read or refused in one clear line.

    python benchmarks/fuzz.py [--files 10000] [--seed 1] [--only pth h5 …]

Sound files of every format are made, then mutated: bits flipped, bytes overwritten (in the header above all), pieces
cut out, doubled or put elsewhere, numbers made huge; of archives also what is inside, the checksums made right again.
Each is read in a process with a limit on memory and time. A reader may return, or raise UserError or OSError in one
line that names the file. Anything else fails: another exception, a crash, more than 10 seconds, more than 2 GiB. Prints
what it saw, and writes benchmarks/results/fuzz.json. Exit code 1 where something failed.
"""

import argparse
import collections
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import cv2
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from API import UserError
from API.clips.reading import Clip, read_frames
from API.datasets import arrays, human, kth, mmnist, taxibj
from API.run.checkpoint import load_checkpoint
from API.run.files import read_arrays
from API.run.recorder import read_records
from API.run.release import convert_release, infer_args, infer_release_args, is_release
from API.run.weights import as_checkpoint, load_into
from benchmarks.damaged import TINY, cases, sound_files
from benchmarks.record import RESULTS, write_result
from DFDNet import DFDNet

MEMORY, SECONDS = 2**31, 10.0


def read_clip(path: Path) -> None:
    """All frames."""
    for _ in read_frames(Clip(path, path.name, size=(16, 24) if path.suffix == ".yuv" else None)):
        pass


def read_image_folder(path: Path) -> None:
    """A clip of one image."""
    for _ in read_frames(Clip(path.parent, path.name, images=(path,))):
        pass


def read_whole_array(path: Path) -> None:
    """All values, as --dataname arrays reads them."""
    arrays.survey(path, None, None, "0", None, arrays.RESIZE)


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
    **dict.fromkeys(("array.npy", "array.npz", "array.h5", "array.nc"), read_whole_array),
    "safetensors": load_checkpoint, "kth.txt": kth.read_ranges, "human.txt": human.read_list,
}  # fmt: skip


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
        path.unlink(missing_ok=True)  # not in the place of the one before, which may still be open
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
        assert sound.keys() == READERS.keys()
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
