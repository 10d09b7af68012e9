"""The run folder: results/<ex_name>/ with config.json, log.txt, metrics.jsonl, checkpoints/, test.json, figures/."""

import json
from collections.abc import Mapping
from pathlib import Path

from ..machine.processes import rank
from .environment import environment
from .files import write_atomically, write_json


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


def describe_epoch(record: Mapping) -> str:
    """An epoch's numbers in a line."""
    text = f"loss {record['train_loss']:.1f}  lr {record['lr']:.2g}  {record['sequences_per_second']:.1f} sequences/s"
    if "val_mse" in record:
        removed = " ".join(f"{stage['removed']:.1%}" for stage in record["filter"])
        moved = " ".join(f"{stage['threshold_moved']:.3f}" for stage in record["filter"])
        text += f"  validation loss {record['val_loss']:.1f} mse {record['val_mse']:.1f} ssim {record['val_ssim']:.3f}"
        text += f"  filter, by stage: removed {removed}, thresholds moved {moved}"
    return text
