"""Where a run can be watched: TensorBoard, Weights & Biases. They get what metrics.jsonl and test.json hold already."""

import os
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from torch import Tensor

from .. import UserError
from ..clips.scale import Scale
from ..run.files import reason_of
from .figures import rows_of, tiles

PICTURE = "past, truth, prediction, error"


def tag(name: str) -> str:
    """The group and name under which loggers show a number of metrics.jsonl."""
    if name.endswith("_loss"):
        return f"loss/{name.removesuffix('_loss')}"
    return f"metrics/{name.removeprefix('val_')}" if name.startswith("val_") else f"training/{name}"


def tagged(record: Mapping) -> dict[str, float]:
    """The numbers of an epoch's record as loss/…, metrics/… of validation, filter/stage<n>/… and training/…."""
    numbers = {tag(name): v for name, v in record.items() if isinstance(v, (int, float)) and name != "epoch"}
    for stage in record.get("filter", ()):
        numbers |= {f"filter/stage{stage['stage']}/{name}": v for name, v in stage.items() if name != "stage"}
    return numbers


def missing(name: str, package: str) -> UserError:
    """What to tell the user where a logger's package is not installed."""
    return UserError(f"--logger {name}: {package} is not installed: pip install {package}, or choose another logger")


class TensorBoard:
    """Events in <run folder>/tensorboard. epoch: how many are done; what was written of later ones is hidden."""

    def __init__(self, folder: Path, epoch: int, flags: Mapping) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise missing("tensorboard", "tensorboard") from None
        self.flags = {name: v if isinstance(v, (bool, int, float)) else str(v) for name, v in flags.items()}
        self.writer = SummaryWriter(os.fspath(folder / "tensorboard"), purge_step=epoch + 1)

    def epoch(self, epoch: int, numbers: Mapping[str, float], picture: np.ndarray | None) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, epoch)
        if picture is not None:
            self.writer.add_image(PICTURE, picture, epoch, dataformats="HWC")

    def results(self, scores: Mapping[str, float]) -> None:
        self.writer.add_hparams(self.flags, dict(scores), run_name=".")

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """A run of Weights & Biases; its files are in <run folder>/wandb. A resumed run goes on with its id.

    WANDB_MODE decides between online and offline. Without it, the run is offline where the server cannot be reached or
    nobody is logged in; `wandb sync` uploads it later.
    """

    def __init__(self, folder: Path, epoch: int, flags: Mapping) -> None:
        try:
            import wandb
        except ImportError:
            raise missing("wandb", "wandb") from None
        place = folder / "wandb"
        place.mkdir(exist_ok=True)
        known = place / "id.txt"
        if not known.exists():
            known.write_text(secrets.token_hex(4))
        about = dict(id=known.read_text(), name=folder.name, project=os.environ.get("WANDB_PROJECT", "dfdnet"))
        self.image, online = wandb.Image, "WANDB_MODE" in os.environ or (logged_in() and reachable())
        self.run = wandb.init(
            **about, dir=folder, config=dict(flags), resume="allow", mode=None if online else "offline"
        )
        self.run.define_metric("*", step_metric="epoch")
        if not online:
            print(f"wandb: offline; `wandb sync {place}/offline-run-*` uploads it", flush=True)

    def epoch(self, epoch: int, numbers: Mapping[str, float], picture: np.ndarray | None) -> None:
        shown = {} if picture is None else {PICTURE: self.image(picture)}
        self.run.log({"epoch": epoch, **numbers, **shown}, step=epoch)  # parts of a resumed run do not overlap

    def results(self, scores: Mapping[str, float]) -> None:
        self.run.summary.update(dict(scores))

    def close(self) -> None:
        self.run.finish()


def server() -> str:
    """The address of Weights & Biases, or of one's own server."""
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")


def logged_in() -> bool:
    """Whether there is a key for the server: in the environment, or in ~/.netrc from `wandb login`."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    from requests.utils import get_netrc_auth

    return get_netrc_auth(server()) is not None


def reachable(seconds: float = 3.0) -> bool:
    """Whether the server accepts connections."""
    url = urlsplit(server())
    try:
        socket.create_connection((url.hostname, url.port or (80 if url.scheme == "http" else 443)), seconds).close()
    except OSError:
        return False
    return True


LOGGERS: dict[str, Callable] = {"tensorboard": TensorBoard, "wandb": Wandb}


class Loggers:
    """The chosen loggers, as one; none of them where names is empty or "none", as in all processes but the first.

    A context: they are closed at its end. One that cannot write is left out from then on, with a warning: what it shows
    is in metrics.jsonl. Raises UserError where the package of one is missing.
    """

    def __init__(
        self, names: Sequence[str], folder: Path, epoch: int, flags: Mapping, scale: Scale | None = None
    ) -> None:
        """epoch: how many are done. flags: shown beside the scores. scale: of the frames that are shown."""
        self.scale = scale
        flags = {name: value for name, value in flags.items() if value is not None}
        self.loggers = {}
        for name in dict.fromkeys(name for name in names if name != "none"):  # one named twice is opened once
            with self.left_out_at_need(name):
                self.loggers[name] = LOGGERS[name](folder, epoch, flags)

    def __enter__(self) -> "Loggers":
        return self

    def __exit__(self, *_) -> None:
        self.each(lambda logger: logger.close())

    @contextmanager
    def left_out_at_need(self, name: str) -> Iterator[None]:
        """Within, an error in writing ends the logger, not the run."""
        try:
            yield
        except OSError as error:
            self.loggers.pop(name, None)
            print(f"warning: --logger {name}: cannot write ({reason_of(error)}); going on without it", flush=True)

    def each(self, tell: Callable[[Any], None]) -> None:
        """tell every logger."""
        for name, logger in list(self.loggers.items()):
            with self.left_out_at_need(name):
                tell(logger)

    def epoch(self, epoch: int, record: Mapping, shown: Sequence[Tensor] | None) -> None:
        """A record of metrics.jsonl, and where one is shown, a sequence: past, future and predicted (T, C, H, W)."""
        if not self.loggers:
            return
        numbers, picture = tagged(record), None
        if shown is not None:
            rows = rows_of(*(x.float().cpu().numpy() for x in shown), self.scale)
            picture = np.asarray(tiles(rows, scale=self.scale))
        self.each(lambda logger: logger.epoch(epoch, numbers, picture))

    def results(self, tested: Mapping) -> None:
        """The scores of test.json."""
        scores = {
            f"test/{protocol}/{metric}": result["mean"]
            for protocol in tested.get("protocols", ())
            for metric, result in tested[protocol]["model"].items()
        }
        self.each(lambda logger: logger.results(scores))
