"""What a test leaves in a run folder: test.json, scores.npz, predictions.npz, figures; and what they were measured on.

A test is of a checkpoint, with model flags, of sequences and in a precision. The first one in a run folder, and every
repetition of it, has its files in the folder itself; a test that differs in one of these gets a folder of its own,
tests/<key>.
"""

import datetime
import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from ..deploy.hub import is_hub, weights_file
from ..machine.device import Machine
from ..run.environment import environment
from ..run.files import VERSION, read_arrays, write_arrays, write_json

PACKAGES = ("torchvision", "opencv-python-headless", "av", "pillow", "einops", "lpips")


def weights_fingerprint(checkpoint: str) -> str | None:
    """The same for checkpoints of the same content; None where there is no such file."""
    path = weights_file(checkpoint)
    hashed = hashlib.blake2b(digest_size=8)
    try:
        with path.open("rb") as file:
            while data := file.read(2**20):
                hashed.update(data)
    except OSError:
        return None
    return hashed.hexdigest()


def circumstances(machine: Machine) -> dict:
    """Where, when and with what something is measured, JSON-ready."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "precision": machine.precision,
        "device": str(machine.device),
        "threads": torch.get_num_threads(),
        "processes": machine.world.size,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **environment(),
        "packages": packages,
    }


def key_of(content: Mapping) -> str | None:
    """A folder's name for the test that test.json describes, equal for repetitions; None where it says too little."""
    on = content.get("measured_on")
    if on is None:
        return None
    model = json.dumps(content.get("model_flags"), sort_keys=True)
    what = f"{on['checkpoint']} {model} {on['data_fingerprint']} {on['precision']}"
    short = hashlib.blake2b(what.encode(), digest_size=4).hexdigest()
    return f"{content.get('dataname', 'test')}-{on['past']}to{on['future']}-{on['precision']}-{short}"


def checkpoint_name(checkpoint: str, run: Path) -> str:
    """The checkpoint's path: from the run folder where it lies in it, so that a run can be moved. Or its hf:// name."""
    if is_hub(checkpoint):
        return checkpoint
    path = Path(checkpoint).resolve()
    return path.relative_to(run.resolve()).as_posix() if run.resolve() in path.parents else str(path)


def read_test(folder: Path) -> dict | None:
    """test.json of a folder, {} where it cannot be read, None where there is none."""
    try:
        content = json.loads((folder / "test.json").read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def folder_for(run: Path, content: Mapping) -> Path:
    """The folder for the files of a test."""
    there = read_test(run)
    return run if there is None or key_of(there) == key_of(content) else run / "tests" / key_of(content)


def same_model(there: Mapping, content: Mapping) -> bool:
    """Whether two tests, as test.json describes them, are of the same weights in the same model on the same data."""
    then, now = there.get("measured_on"), content["measured_on"]
    known = bool(then) and now["weights"] is not None
    return known and then["weights"] == now["weights"] and key_of(there) == key_of(content)


def add_earlier(folder: Path, content: dict, arrays: dict[str, np.ndarray]) -> list[str]:
    """Where folder holds scores of the same weights on the same sequences under other protocols: add these to arrays,
    say so in content, and return the protocols."""
    there = read_test(folder) or {}
    if not same_model(there, content):
        return []
    then = there["measured_on"]
    earlier = {name: a for name, a in read_arrays(folder / "scores.npz").items() if name not in arrays}
    arrays |= earlier
    when = {name: then[name] for name in ("date", "command", "git_commit", "device")}
    measured = {name.partition("/")[2] for name in earlier if "/" in name}
    if measured:
        content["measured_earlier"] = {m: there.get("measured_earlier", {}).get(m, when) for m in sorted(measured)}
    return list(there.get("protocols", ()))


def write_test(folder: Path, content: Mapping, arrays: Mapping, predictions: Mapping | None) -> None:
    """Write the files of a test; predictions of an earlier one stay only if they would be the same."""
    stay = same_model(read_test(folder) or {}, content)
    folder.mkdir(parents=True, exist_ok=True)
    version = np.array(VERSION)
    if predictions:
        write_arrays(folder / "predictions.npz", version=version, **predictions)
    elif not stay:
        (folder / "predictions.npz").unlink(missing_ok=True)
    write_arrays(folder / "scores.npz", **{**arrays, "version": version})
    write_json(folder / "test.json", {"version": VERSION, **content})
