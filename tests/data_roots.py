"""Every data set as small files in the real format, in a folder for --data_root."""

import gzip
from pathlib import Path

import files
import h5py
import numpy as np
from PIL import Image

FEW = (1, 3, 2, 13, 17)  # persons of KTH: two train, two validate with seed 1, one tests
KTH_RANGES = [(1, 10), (11, 20), (25, 30)]  # the gap is before 25


def kth_frames(person: int, action: str) -> list[np.ndarray]:
    """32 grey frames of 48x64, (H, W, 3)."""
    return [frame[..., :1].repeat(3, -1) for frame in files.pictures(32, seed=person + len(action))]


def kth_official(root: Path, people=range(1, 26)) -> Path:
    """Two actions, one video a person and action."""
    lines = ["KTH sequences, frames from-to", ""]
    for action in ("boxing", "running"):
        for person in people:
            name = f"person{person:02d}_{action}_d1"
            files.write_video(root / f"kth/{action}/{name}_uncomp.avi", kth_frames(person, action))
            lines.append(f"{name}\t\tframes\t" + ", ".join(f"{a}-{b}" for a, b in KTH_RANGES))
    lines.append("person13_handclapping_d3\t*missing*")
    (root / "kth/00sequences.txt").write_text("\n".join(lines))
    return root


def kth_folders(root: Path, people=range(1, 26)) -> Path:
    """The same as frames within the ranges only."""
    for action in ("boxing", "running"):
        for person in people:
            folder = root / f"kth/{action}/person{person:02d}_{action}_d1_uncomp"
            folder.mkdir(parents=True)
            frames = kth_frames(person, action)
            for number in (n for a, b in KTH_RANGES for n in range(a, b + 1)):
                Image.fromarray(frames[number - 1]).save(folder / f"image_{number:04d}_x.jpg", quality=95)
    return root


def human(root: Path) -> Path:
    """Seven subjects, two videos each, both lists naming all of them, as the published ones do."""
    lists = {"train": [], "test": []}
    for subject in (1, 5, 6, 7, 8, 9, 11):
        for action in ("Walking", "Eating 1"):
            prefix = f"images/S{subject}_{action}.5413_"
            for number in range(0, 60, 5):
                path = root / f"human/{prefix}{number:06d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(files.picture(number, seed=subject)).save(path, quality=95)
            lists["train"] += [f"{prefix},0,15", f"{prefix},20,35"]
            lists["test"].append(f"{prefix},10,40")
    for name, lines in lists.items():
        (root / f"human/{name}.txt").write_text("\n".join(lines) + "\n")
    return root


def sjtu4k(root: Path) -> Path:
    """Four listed clips, of every kind."""
    folder = root / "sjtu4k"
    files.write_yuv(folder / "Bund_Nightscape_64x48.yuv", files.pictures(9))
    files.write_yuv(folder / "Tall Buildings 64x48 10bit.yuv", files.pictures(9), 10)
    files.write_images(folder / "rush hour", files.pictures(9))
    files.write_video(folder / "Marathon.mp4", files.pictures(9))
    return root


def taxi_npz(root: Path, **changes) -> Path:
    """OpenSTL's file: 40 and 7 sequences. changes: other arrays, or None to leave one out."""
    rng = np.random.default_rng(0)
    arrays = {
        f"{name}_{side}": rng.uniform(-1, 1, (n, 4, 2, 32, 32))
        for side, n in (("train", 40), ("test", 7))
        for name in "XY"
    }
    (root / "taxibj").mkdir(parents=True, exist_ok=True)
    arrays |= changes
    np.savez(root / "taxibj/dataset.npz", **{name: a for name, a in arrays.items() if a is not None})
    return root


def taxi_h5(root: Path) -> dict[str, np.ndarray]:
    """The authors' four files; returns their flows. The last has 31 days, and a half hour is missing on the first."""
    rng, flows = np.random.default_rng(0), {}
    (root / "taxibj").mkdir(parents=True)
    for year, month, days in (
        ("BJ13", "201307", 3),
        ("BJ14", "201403", 3),
        ("BJ15", "201503", 3),
        ("BJ16", "201601", 31),
    ):
        stamps = [f"{month}{day:02d}{slot:02d}" for day in range(1, days + 1) for slot in range(1, 49)]
        if year == "BJ16":
            del stamps[20]
        flows[year] = rng.integers(0, 1000, (len(stamps), 2, 32, 32)).astype(np.float64)
        with h5py.File(root / f"taxibj/{year}_M32x32_T30_InOut.h5", "w") as file:
            file["data"], file["date"] = flows[year], np.array(stamps, dtype="S10")
    return flows


def videos(root: Path) -> Path:
    """Seven clips of nine frames, of every kind."""
    folder = root / "my videos"
    for k, kind in enumerate(("avi", "mp4", "mov", "mkv")):
        files.write_video(folder / f"clip {k}.{kind}", files.pictures(9, seed=k))
    files.write_gif(folder / "été.gif", files.pictures(9, seed=5))
    files.write_images(folder / "folder/frames", files.pictures(9, seed=6), "{:02d}.jpg")
    np.save(folder / "array.npy", np.stack(files.pictures(9, seed=7)))
    return folder


def arrays(root: Path) -> Path:
    """Eight sequences of eight frames with two channels, from -3 to 7 each."""
    values = np.random.default_rng(0).uniform(-3, 7, (8, 8, 2, 32, 32)).astype(np.float32)
    values[..., 0, 0], values[..., 0, 1] = -3, 7
    root.mkdir(exist_ok=True)
    np.save(root / "field.npy", values)
    return root


def idx_file(path: Path, images: np.ndarray, magic: int = 2051) -> Path:
    """MNIST's format: a gzipped IDX file."""
    header = np.array([magic, *images.shape], dtype=">i4").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wb") as file:
        file.write(header + images.astype(np.uint8).tobytes())
    return path


def moving_mnist(root: Path) -> Path:
    """60 digits and 6 test sequences of noise."""
    rng = np.random.default_rng(0)
    idx_file(root / "moving_mnist/train-images-idx3-ubyte.gz", rng.integers(0, 256, (60, 28, 28)))
    np.save(root / "moving_mnist/mnist_test_seq.npy", rng.integers(0, 256, (20, 6, 64, 64)).astype(np.uint8))
    return root


# name -> (what makes its files and returns --data_root, shapes that fit them)
ROOTS = {
    "mmnist": (moving_mnist, dict(in_shape=(10, 1, 64, 64), out_shape=(10, 1, 64, 64))),
    "digits": (lambda root: root, dict(in_shape=(4, 1, 32, 32), out_shape=(4, 1, 32, 32))),
    "kth": (lambda root: kth_official(root, FEW), dict(in_shape=(4, 1, 32, 32), out_shape=(8, 1, 32, 32))),
    "human": (human, dict(in_shape=(2, 3, 32, 32), out_shape=(2, 3, 32, 32))),
    "sjtu4k": (sjtu4k, dict(in_shape=(2, 3, 32, 48), out_shape=(2, 3, 32, 48))),
    "taxibj": (taxi_npz, dict(in_shape=(4, 2, 32, 32), out_shape=(4, 2, 32, 32))),
    "arrays": (arrays, dict(in_shape=(2, 2, 32, 32), out_shape=(2, 2, 32, 32))),
    "video": (videos, dict(in_shape=(2, 3, 32, 32), out_shape=(2, 3, 32, 32))),
}
