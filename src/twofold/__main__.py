"""`twofold …` and `python -m twofold …`: what must be set before torch loads is set here, then the command line takes
over.
"""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress


def main() -> None:
    """Ends the process with the exit code of `twofold.cli.app.run_command_line`."""
    # Half of a large convolution's time on a CPU goes into page faults under the default allocator. Torch reads this
    # when it is imported.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    _open_closed_streams()
    code = 130
    try:
        from twofold.cli.app import run_command_line

        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show must not end a run
                stream.reconfigure(errors="backslashreplace")
        code = run_command_line(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:  # while modules were loaded: nothing had begun
        _say("twofold: interrupted; nothing had begun")
    except OSError as error:  # of printing: errors of files are reported where they occur
        # What is still to be flushed would fail again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if not isinstance(error, BrokenPipeError):  # a reader such as `head` that has enough is no failure
            _say(f"twofold: cannot write to standard output: {error.strerror}; the files are complete")
            code = 1
        else:
            code = 0 if code == 130 else code
    sys.exit(code)


def _open_closed_streams() -> None:
    """A closed standard stream is opened on the null device; else the first file that is opened would take its place,
    and what is printed would be written into that.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - for as long as the process lives


def _say(text: str) -> None:
    with suppress(OSError):
        print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
