"""`twofold ui`."""

from __future__ import annotations

import importlib.util
import os
from functools import partial
from typing import Annotated

import typer

from twofold.contracts import TwofoldError


def command(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the address; 0 takes a free one.")] = 7860,
    host: Annotated[
        str, typer.Option(help="127.0.0.1 for this machine alone; 0.0.0.0 lets everyone in the network use the page.")
    ] = "127.0.0.1",
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda …")] = "auto",
    max_megabytes: Annotated[int, typer.Option(min=1, help="Of one photograph's file.")] = 100,
    max_megapixels: Annotated[int, typer.Option(min=1, help="Of one photograph.")] = 100,
    max_photographs: Annotated[int, typer.Option(min=1, help="On the page at once.")] = 100,
    max_gigabytes: Annotated[int, typer.Option(min=1, help="On the disk, for all who use the page.")] = 4,
) -> int:
    """Opens a web page to restore photographs with: before and after under a slider, the guidance map to paint on.

    It needs `pip install 'twofold[ui]'` and no network: nothing is sent anywhere. What is added to the page is deleted
    when the page is closed, and all of it when the server ends (Ctrl-C).

    twofold ui

    twofold ui --port 8000 --no-open

    From a phone in the same network, which lets everyone there use it:

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
