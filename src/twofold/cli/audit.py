"""`twofold audit`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from twofold.cli.misuse import Misuse
from twofold.cli.options import JsonOption
from twofold.cli.pipeline import bar


def command(
    data: Annotated[Path, typer.Argument(help="Folder of the training pairs.")],
    test: Annotated[Path | None, typer.Option(help="Folder of the test pairs.")] = None,
    observed: Annotated[
        str | None, typer.Option(help="Sub-folder of degraded pictures; common layouts are recognised without.")
    ] = None,
    clean: Annotated[str | None, typer.Option(help="Sub-folder of clean pictures.")] = None,
    test_observed: Annotated[str | None, typer.Option(help="The same of --test; without it as in DATA.")] = None,
    test_clean: Annotated[str | None, typer.Option(help="The same of --test; without it as in DATA.")] = None,
    photographs: Annotated[
        bool, typer.Option("--photographs", help="The folders hold single photographs: look for shared scenes only.")
    ] = False,
    as_json: JsonOption = False,
) -> int:
    """Checks image pairs before training: unreadable files, different sizes, shifted images, images paired with the
    wrong partner, duplicate scenes, and scenes of --test in DATA.

    twofold audit Rain100 --observed light --clean clean

    twofold audit my-photographs --photographs --test BSD68

    Exit code 3 if anything was found.
    """
    from twofold.contracts import ConfigError, ImageError
    from twofold.data.audit import audit, leaks
    from twofold.data.pairs import find_pairs
    from twofold.images import READABLE, find

    if test is None and (test_observed or test_clean):
        raise Misuse("--test-observed and --test-clean are sub-folders of --test; name that folder too")
    if photographs:
        if test is None:
            raise Misuse("--photographs compares two folders; name the second with --test")
        if observed or clean or test_observed or test_clean:
            raise Misuse("--photographs takes whole folders, not pairs; leave the options of sub-folders out")
        taught, asked = find([data]), find([test])
        for photos, found in ((data, taught), (test, asked)):
            if not found:  # nothing compared is no clean bill
                raise ImageError(f"no images in {photos}; known suffixes: {' '.join(READABLE)}")
        with bar(len(taught) + len(asked), "reading") as show:
            findings = leaks(taught, asked, progress=lambda done, total: show(done))
    else:
        for folder in (data, test):
            if folder is not None and not folder.is_dir():
                raise ConfigError(f"{folder}: no such folder; name one that holds pairs")
        pairs = find_pairs(data, observed=observed, clean=clean)
        held = [] if test is None else find_pairs(test, observed=test_observed or observed, clean=test_clean or clean)
        with bar(len(pairs) + len(held), "reading") as show:
            findings = audit(pairs, held, progress=lambda done, total: show(done))
    if as_json:
        listed = [{"kind": f.kind, "files": [str(file) for file in f.files], "detail": f.detail} for f in findings]
        print(json.dumps(listed, indent=2))
    else:
        for finding in findings:
            print(finding)
        print(f"{len(findings)} findings" if len(findings) != 1 else "1 finding")
    return 3 if findings else 0
