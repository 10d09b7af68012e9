"""The run folder: results/<ex_name>/ with config.json, log.txt, metrics.jsonl, checkpoints/, test.json, figures/."""

import json
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from .. import UserError
from ..machine.processes import launch, rank
from . import lock
from .environment import environment
from .files import VERSION, append, reason_of, write_atomically, write_json
from .interrupt import Interrupted


class Recorder:
    """Owns a run folder. Training enters one with checkpoints in it only to resume, or empties it with overwrite, and
    keeps other processes from training there; enter is for what only adds to it, such as a test.

    Raises UserError in one line where it must not or cannot be written to.
    """

    def __init__(self, folder: Path, resume: bool = False, overwrite: bool = False, enter: bool = False) -> None:
        self.folder = Path(folder)
        self.checkpoints, self.figures = self.folder / "checkpoints", self.folder / "figures"
        self.bad_batch = self.folder / "bad_batch.npz"
        try:
            self.make_folders()
            self.folder.joinpath("log.txt").open("a").close()
        except OSError as error:
            raise not_writable(self.folder, error) from None
        if enter:
            return
        claim(self.folder)
        if (self.folder / DOOMED).exists() or (overwrite and holds_run(self.folder)):
            empty(self.folder)
            self.make_folders()
        if not resume:
            refuse_checkpoints(self.folder)

    def make_folders(self) -> None:
        """The run folder and those in it."""
        for folder in (self.checkpoints, self.figures):
            folder.mkdir(parents=True, exist_ok=True)

    def log(self, line: str) -> None:
        """Print a line and keep it in log.txt."""
        print(line, flush=True)
        self.note(line)

    def note(self, line: str) -> None:
        """Keep a line in log.txt, with the time."""
        append(self.folder / "log.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")

    def write_config(self, config: Mapping) -> None:
        """config.json: every flag, and what it ran on."""
        write_json(
            self.folder / "config.json",
            {"version": VERSION, "flags": dict(config), "environment": environment(), "launch": launch()},
        )

    def epoch(self, record: Mapping) -> None:
        """Add one JSON line to metrics.jsonl."""
        append(self.folder / "metrics.jsonl", json.dumps({"version": VERSION, **record}) + "\n")

    def history(self) -> list[dict]:
        """The epochs so far."""
        records, _ = read_records(self.folder / "metrics.jsonl")
        return [{name: value for name, value in record.items() if name != "version"} for record in records]

    def forget_after(self, epoch: int) -> None:
        """Drop the records of epochs after `epoch`, written before a crash and about to be trained again."""
        path = self.folder / "metrics.jsonl"
        records, torn = read_records(path)
        if torn:
            self.log(f"warning: {path}: its last line was cut short and is left out")
        kept = [record for record in records if record["epoch"] <= epoch]
        write_atomically(path, "".join(json.dumps(record) + "\n" for record in kept).encode())

    def close(self) -> None:
        """Let other processes train in this folder."""
        lock.let_go(self.folder)

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _) -> None:
        """Why it ended goes to log.txt."""
        if error is not None:
            why = str(error) if isinstance(error, Interrupted) else f"ended by {kind.__name__}: {reason_of(error)}"
            with suppress(UserError):  # of a full disk, perhaps the one that it ended by
                self.note(why)
        self.close()


def claim(folder: Path) -> None:
    """Take a run folder for this process. Raises UserError where another one trains there, or it cannot be written."""
    try:
        lock.hold(folder)
    except OSError as error:
        raise not_writable(folder, error) from None


def not_writable(folder: Path, error: OSError) -> UserError:
    """What to tell the user of it."""
    return UserError(f"--res_dir: cannot write to {folder} ({error.strerror})")


def refuse_checkpoints(folder: Path) -> None:
    """Raise UserError where training would go over a run that is there."""
    if next(folder.glob("checkpoints/last*.pth"), None):
        raise UserError(
            f"{folder} holds a run already: --resume goes on with it, --overwrite starts it anew, "
            "another --ex_name keeps both"
        )


def read_records(path: Path) -> tuple[list[dict], bool]:
    """The records of a metrics.jsonl, none where there is none; and whether its last line was left out, as a kill or a
    full disk has cut it short. Raises UserError, naming the line, where another one is no record."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return [], False
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or reason_of(error)}") from None
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not isinstance(record.get("epoch"), int):
                raise ValueError("no record of an epoch")
        except (ValueError, RecursionError):
            if number == len(lines):
                return records, True
            raise UserError(f"{path}: line {number} is damaged; take it out to go on") from None
        records.append(record)
    return records, False


def holds_run(folder: Path) -> bool:
    """Whether folder holds something of a run, and not just anything else."""
    return any(next(folder.glob(name), None) for name in ("config.json", "test*.json", "metrics.jsonl", "*/*.pth"))


DOOMED = ".overwritten"  # where the checkpoints of a run are while it is removed


def empty(folder: Path) -> None:
    """Remove everything of the run in folder, but for other runs in its subfolders and the lock.

    The checkpoints go first, by a rename, so that a kill leaves nothing to resume from; what is left then is removed at
    the next start, which finds DOOMED. Raises UserError where something cannot be removed.
    """
    doomed = folder / DOOMED
    try:
        if not doomed.exists():
            (folder / "checkpoints").rename(doomed)
        for path in folder.iterdir():
            if path.name not in (DOOMED, lock.NAME) and not next(path.rglob("config.json"), None):
                remove_tree(path)
        remove_tree(doomed)
    except OSError as error:
        raise UserError(f"--overwrite: cannot remove {error.filename or folder} ({error.strerror})") from None


def remove_tree(path: Path) -> None:
    """Remove a file, a link, or a folder with everything in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def launched_by(folder: Path) -> str | None:
    """The launch, see processes.launch, that trained last in a run folder; None where that is not known."""
    try:
        return json.loads((folder / "config.json").read_text()).get("launch")
    except (OSError, ValueError, AttributeError):
        return None


def run_of(checkpoint: Path) -> Path | None:
    """The run folder that a checkpoint lies in, RUN/checkpoints/NAME.pth; None where it is not in one."""
    here = Path.cwd()
    for path in (checkpoint.absolute(), checkpoint.resolve()):  # the folder of checkpoints may be a link
        folder = path.parent
        run = folder.parent
        if folder.name == "checkpoints" and (run / "config.json").is_file():
            return run.relative_to(here) if here in run.parents else run
    return None


class Silent:
    """Stands where a Recorder does in the processes that leave writing to the first one."""

    def __init__(self, folder: Path, *_, **__) -> None:
        self.folder = Path(folder)
        self.checkpoints, self.figures = self.folder / "checkpoints", self.folder / "figures"
        self.bad_batch = self.folder / f"bad_batch.{rank()}.npz"

    def silent(self, *_) -> None:
        """Nothing."""

    log = note = write_config = epoch = forget_after = close = __exit__ = silent

    def __enter__(self) -> "Silent":
        return self


def describe_epoch(record: Mapping) -> str:
    """An epoch's numbers in a line."""
    text = f"loss {record['train_loss']:.4g}  lr {record['lr']:.2g}  {record['sequences_per_second']:.1f} sequences/s"
    if "val_mse" in record:
        text += f"  validation loss {record['val_loss']:.4g} mse {record['val_mse']:.1f} ssim {record['val_ssim']:.3f}"
        stages = [
            f"stage {stage['stage']} removes {stage['removed']:.0%} ({stage['energy_removed']:.2%} of the energy), "
            f"thresholds moved {stage['threshold_moved']:.3f} ({stage['threshold_drift']:+.3f})"
            for stage in record["filter"]
        ]
        text += f"  filters: {'; '.join(stages)}" if stages else ""
    return text


def recorder_of(writes: bool) -> type:
    """What writes a run folder: of many processes, the first one only."""
    return Recorder if writes else Silent
