"""Image files -> frames, with Pillow: stills, and films in one file (GIF, APNG, animated WebP, multi-page TIFF)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, ImageSequence

from ..run.files import reason_of
from .clip import BadClip, Unreadable, check_pixels
from .video import over_black

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
FILMS = (".gif", ".apng")  # a file of this ending is a clip
MAYBE_FILMS = (".png", ".tif", ".tiff", ".webp")  # a file of this ending is a clip if it holds several frames


@contextmanager
def opened(path: Path, what: str) -> Iterator[Image.Image]:
    """An image file. Raises OSError where it cannot be opened, BadClip for whatever goes wrong with it later."""
    with path.open("rb") as file:
        try:
            with Image.open(file) as image:
                check_pixels(path, *image.size)
                yield image
        except BadClip:
            raise
        except Exception as error:  # decoders of images fail in as many ways as images can be damaged
            if getattr(error, "errno", None) is not None:  # of the disk, or the network
                raise
            kind = Unreadable if isinstance(error, MemoryError) else BadClip
            raise kind(f"{path}: not a readable {what} ({reason_of(error)})") from None


def frames_in(image: Image.Image) -> int:
    """How many frames an image file holds. A second page of another size is a preview, and JPEGs hold other views."""
    count = getattr(image, "n_frames", 1) if image.format in ("GIF", "PNG", "TIFF", "WEBP") else 1
    if count > 1 and image.format == "TIFF":
        size = image.size
        image.seek(1)
        count = count if image.size == size else 1
        image.seek(0)
    return count


def is_film(path: Path) -> bool:
    """Whether a file of an ending in MAYBE_FILMS holds several frames; not if it cannot be read."""
    try:
        with opened(path, "image") as image:
            return frames_in(image) > 1
    except (BadClip, OSError):
        return False


def sort_images(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The image files of a folder -> (the frames of one clip, films that are a clip each), both as they come.

    One look at the first file of each ending tells whether all of that ending are films.
    """
    films = set(FILMS)
    for ending in MAYBE_FILMS:
        first = next((path for path in paths if path.suffix.lower() == ending), None)
        if first is not None and is_film(first):
            films.add(ending)
    return (
        [path for path in paths if path.suffix.lower() in ENDINGS and path.suffix.lower() not in films],
        [path for path in paths if path.suffix.lower() in films],
    )


def read_images(paths: Sequence[Path]) -> Iterator[np.ndarray]:
    """(H, W, 3) RGB uint8 of image files of one size, a frame each."""
    size = None
    for path in paths:
        image = read_image(path)
        if size not in (None, image.shape):
            found, before = (f"{shape[1]}x{shape[0]}" for shape in (image.shape, size))
            raise BadClip(f"{path}: is {found}, the frames before it are {before}; frames of a clip have one size")
        size = image.shape
        yield image


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3) RGB uint8 of an image file, upright, transparent parts over black."""
    with opened(path, "image") as image:
        if (frames := frames_in(image)) > 1:
            raise BadClip(f"{path}: holds {frames} frames, among images of one frame; move it out of their folder")
        return as_rgb(path, image)


def read_film(path: Path) -> Iterator[np.ndarray]:
    """The frames of an image file that holds several, (H, W, 3) RGB uint8."""
    with opened(path, path.suffix[1:].upper()) as image:
        size = None
        for k, frame in enumerate(ImageSequence.Iterator(image)):
            if k == 0 and image.info.get("default_image"):  # of an APNG, for programs that do not know films
                continue
            rgb = as_rgb(path, frame)
            if size not in (None, rgb.shape):
                raise BadClip(f"{path}: its page {k + 1} is {rgb.shape[1]}x{rgb.shape[0]}, not {size[1]}x{size[0]}")
            size = rgb.shape
            yield rgb


def as_rgb(path: Path, image: Image.Image) -> np.ndarray:
    """(H, W, 3) RGB uint8 of an opened image. 16 bits span 0 to 65535, floats 0 to 1; BadClip for other ranges."""
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    image.load()
    image = ImageOps.exif_transpose(image)
    if sixteen:
        grey = (np.asarray(image).astype(np.int64) * 255 + 32767) // 65535
    elif image.mode == "F":
        grey = np.asarray(image)
        if not (np.isfinite(grey).all() and grey.min() >= 0 and grey.max() <= 1):
            raise BadClip(f"{path}: its floats must lie in [0, 1]")
        grey = (grey * 255).round()
    elif image.mode == "I":
        raise BadClip(f"{path}: its 32-bit integers have no known range; save it with 8 or 16 bits")
    elif image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        return over_black(np.asarray(image.convert("RGBA")))
    else:
        return np.asarray(image.convert("RGB"))
    return grey.astype(np.uint8)[..., None].repeat(3, -1)


def frame_rate(path: Path) -> float:
    """Frames a second of a film, by how long it shows its first frame; 25 where it does not say."""
    with opened(path, "image") as image:
        image.load()
        return 1000 / (image.info.get("duration") or 40)
