"""What a run prints must never end it: on no terminal, in no encoding, with nobody reading any more."""

import io
import os
import sys


class Unfailing(io.FileIO):
    """A raw output stream that drops what cannot be written. reader_gone: whether nobody reads it, as in `… | head`."""

    reader_gone = False

    def write(self, data) -> int:
        try:
            written = super().write(data)
        except OSError as error:
            self.reader_gone = self.reader_gone or isinstance(error, BrokenPipeError)
            written = None
        return len(data) if written is None else written  # None also where the reader of a non-blocking pipe is slow


def keep_printing() -> None:
    """Make sys.stdout and sys.stderr raise neither OSError nor UnicodeEncodeError; "…" becomes "?" in ASCII."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started this process
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
            continue
        buffer = getattr(stream, "buffer", None)
        if type(getattr(buffer, "raw", buffer)) is io.FileIO and stream.fileno() == number:
            stream.flush()
            raw = Unfailing(number, "w", closefd=False)
            options = dict(line_buffering=stream.line_buffering, write_through=stream.write_through)
            binary = raw if isinstance(buffer, io.FileIO) else io.BufferedWriter(raw)  # python -u has no buffer
            setattr(sys, name, io.TextIOWrapper(binary, stream.encoding, "replace", **options))
        elif isinstance(stream, io.TextIOWrapper):  # a console of Windows, a test's
            stream.reconfigure(errors="replace")


def reader_gone() -> bool:
    """Whether nobody reads what this process prints any more; known from the first line that was lost."""
    buffer = getattr(sys.stdout, "buffer", None)
    return getattr(getattr(buffer, "raw", buffer), "reader_gone", False)
