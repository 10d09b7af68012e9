"""Where predictions are written: never over what they are made from, and no two in one place."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from .. import UserError
from ..clips.clip import Clip
from ..clips.reading import identity
from ..clips.writing import check_folder, check_output


class Outputs:
    """Where the predictions go: --output itself for a single one, else a file for each in a folder of that name.

    Raises UserError for a place that is not to be written to: because of its kind or rights, or as the input is there.
    """

    def __init__(self, output: Path, several: bool, source: Path, clips: Sequence[Clip]) -> None:
        """several: whether there may be more than one prediction. source: --input, in which the clips are."""
        self.output = output = output if output.name else output.resolve()  # "." has no name
        self.several = several
        self.folder = output.with_suffix("") if output.suffix else output
        self.names = dict(zip(clips, names_of(clips)))
        self.inputs = {identity(path) for clip in clips for path in (source, clip.path, *clip.files())}
        check_output(output)
        self.check(self.folder if several else output)
        if several:
            check_output(self.folder / output.name)
        elif not output.suffix:
            check_folder(output)

    def path(self, clip: Clip, start: int) -> Path:
        """For the prediction from frame `start` of a clip."""
        if not self.several:
            return self.output
        path = self.folder / f"{self.names[clip]}_{start:05d}{self.output.suffix}"
        self.check(path)
        return path

    def check(self, path: Path) -> None:
        """Raise UserError where path, by whatever name or link, is an input, or is a folder with one in it."""
        inside = path.iterdir() if path.is_dir() and not (self.several and path == self.folder) else ()
        for place in (path, path.with_name(f".{path.name}"), *inside):  # the second is its name while it is written
            if identity(place) in self.inputs:
                which = "it" if place == path else place
                raise UserError(f"--output {path}: {which} belongs to the input; name another file or folder")


def names_of(clips: Sequence[Clip]) -> list[str]:
    """A name for each clip's files: without its ending, unless others are called like that, and in no folder. No two
    are equal, nor differ in upper and lower case alone."""
    whole = [clip.name.replace("/", "_") for clip in clips]
    names = [name if clip.images else name.rsplit(".", 1)[0] for name, clip in zip(whole, clips)]
    times = Counter(name.casefold() for name in names)
    names = [name if times[name.casefold()] == 1 else full for name, full in zip(names, whole)]
    taken: set[str] = set()
    for k, name in enumerate(names):
        while name.casefold() in taken:
            name = f"{name}_{k}"
        names[k] = name
        taken.add(name.casefold())
    return names
