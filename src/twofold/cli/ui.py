"""`twofold ui`."""

from __future__ import annotations

import importlib.util
import os
from functools import partial
from typing import Annotated

import typer

from twofold.contracts import TwofoldError


def command(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 selects a free one.")] = 7860,
    host: Annotated[
        str, typer.Option(help="127.0.0.1 for this machine only; 0.0.0.0 for everyone in the network.")
    ] = "127.0.0.1",
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda …")] = "auto",
    max_megabytes: Annotated[int, typer.Option(min=1, help="Limit for the file of one photograph.")] = 100,
    max_megapixels: Annotated[int, typer.Option(min=1, help="Limit for one photograph.")] = 100,
    max_photographs: Annotated[int, typer.Option(min=1, help="Limit for one page.")] = 100,
    max_gigabytes: Annotated[int, typer.Option(min=1, help="Limit on disk for all pages together.")] = 4,
) -> int:
    """Opens a web page for restoring photographs, with a before-after slider and an editable guidance map.

    It needs the extra `ui` of the package, and no network: nothing is sent anywhere. Uploaded files are deleted when
    the page is closed, and all of them when the server ends (Ctrl-C).

    twofold ui

    twofold ui --port 8000 --no-open

    Access from other devices in the network, for everyone in it:

    twofold ui --host 0.0.0.0
    """
    if importlib.util.find_spec("gradio") is None:
        raise TwofoldError("the web page needs gradio, which is not installed; pip install 'twofold[ui]'")
    from twofold.ui.visits import Limits, Visits

    visits = Visits(Limits(max_megabytes, max_megapixels, max_photographs, max_gigabytes))
    try:
        # gradio reads these when it is imported: no reports to its makers, and its files where they are deleted.
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["GRADIO_TEMP_DIR"] = str(visits.uploads)
        from twofold import api
        from twofold.ui import server
        from twofold.ui.restoring import Models

        def announce(address: str) -> None:
            print(f"twofold: the page is at {address} (Ctrl-C ends it)", flush=True)
            if host not in server.LOCAL:
                print("twofold: everyone in this network can use it", flush=True)
            if open_browser:
                import webbrowser

                webbrowser.open(address)

        models = Models(load=partial(api.load, device=device))
        server.serve(visits, models, host=host, port=port, announce=announce)
    finally:
        visits.close()
    return 0
