"""`twofold …` and `python -m twofold …`: what must be set before torch loads is set here, then the command line takes
over.
"""

from __future__ import annotations

import io
import os
import sys


def main() -> None:
    # Half of a large convolution's time on a CPU goes into page faults under the default allocator. Torch reads this
    # when it is imported.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    from twofold.cli.app import run_command_line

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show must not end a run
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run_command_line(sys.argv[1:]))


if __name__ == "__main__":
    main()
