"""A disk that is full, for a moment: pytest may write its own output to a file again as soon as it is over."""

import contextlib
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def small_files(size: int) -> Iterator[None]:
    """Within, no file can grow beyond so many bytes: writing then fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
