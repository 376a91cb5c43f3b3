"""The parts of the page and how they are laid out; what they do is in page.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from twofold.ui import html
from twofold.ui.examples import EXAMPLES
from twofold.ui.visits import Limits

DOWNLOAD_FORMATS = {"as it came": None, "JPEG": ".jpg", "PNG": ".png", "WebP": ".webp", "TIFF": ".tiff"}
_ON_CLICK = """
element.addEventListener('click', event => {
  const button = event.target.closest('button[data-photo], button[data-remove], button[data-example]');
  if (button) trigger('click', {...button.dataset});
});
"""


class PageParts:
    """On the left what is asked of the user, on the right the photographs. To be made inside of a `gr.Blocks`.

    tasks: (what the page calls it, key). models: of the first task. `chosen` are the settings, as `page.Choice` takes
    them; `steering` what changes with the model; `shown` what changes with the photograph in view.
    """

    def __init__(self, tasks: Sequence[tuple[str, str]], models: Sequence[str], limits: Limits) -> None:
        gr.HTML(html.header())
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                self.drop = gr.File(label="Photographs", file_count="multiple", height=130, elem_id="drop")
                gr.HTML(html.limits(limits))
                self.examples = gr.HTML(
                    html.examples((key, shown.label) for key, shown in EXAMPLES.items()),
                    js_on_load=_ON_CLICK,
                    elem_id="examples",
                )
                with gr.Group():
                    self.task = gr.Radio(tasks, value=tasks[0][1], label="What is wrong with it?", elem_id="task")
                    self.model = gr.Dropdown(models, label="Model", visible=False, elem_id="model", filterable=False)
                self.suggestion = gr.HTML("")
                self.about = gr.HTML("")
                self._lay_out_wishes()
                self.restore_one = gr.Button("Restore", variant="primary", size="lg", elem_id="restore")
                with gr.Row():
                    self.restore_all = gr.Button("Restore all", visible=False, elem_id="restore-all")
                    self.stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop")
            with gr.Column(scale=3, min_width=300):
                self.status = gr.HTML(html.status(), elem_id="status")
                self.strip = gr.HTML("", js_on_load=_ON_CLICK, elem_id="strip")
                with gr.Row():
                    with gr.Column(scale=3, min_width=300):
                        self.viewer = gr.HTML(html.EMPTY, elem_id="viewer")
                        self.downloads = gr.HTML("", elem_id="downloads")
                        self.kernel_found = gr.HTML("")
                    with gr.Column(scale=2, min_width=300, visible=False, elem_id="map") as self.map_panel:
                        self._lay_out_map()

    def _lay_out_wishes(self) -> None:
        self.strength = gr.Slider(0, 1.5, 1.0, step=0.05, label="Strength", elem_id="strength", visible=False)
        with gr.Group(visible=False) as self.noise_panel:
            self.noise_known = gr.Checkbox(label="I know the noise level", elem_id="noise-known")
            self.noise = gr.Slider(
                0, 0.2, 0.02, step=0.001, label="Noise level", info="0.02 is 5 grey levels of 255", visible=False
            )
        with gr.Column(visible=False) as self.kernel_panel:
            self.kernel_size = gr.Slider(
                7, 61, 31, step=2, label="Largest blur, in pixels", info="The kernel is searched for in this size."
            )
            self.kernel_file = gr.File(
                label="… or the kernel, if you have it",
                height=110,
                elem_id="kernel",
            )
        with gr.Accordion("File format", open=False):
            self.format = gr.Dropdown(
                [*DOWNLOAD_FORMATS], value="as it came", label="Download as", filterable=False, container=False
            )

    def _lay_out_map(self) -> None:
        gr.HTML("<h2>Guidance map</h2>")
        self.editor = gr.ImageEditor(
            label="Guidance map",
            show_label=False,
            type="numpy",
            format="png",
            sources=(),
            transforms=(),
            layers=False,
            buttons=["fullscreen"],
            brush=gr.Brush(default_size=24, colors=["#ffffff", "#aaaaaa", "#555555", "#000000"], color_mode="fixed"),
            eraser=gr.Eraser(default_size=24),
            elem_id="editor",
        )
        self.legend = gr.HTML("")
        with gr.Row():
            self.restore_map = gr.Button(
                "Restore with this map", variant="primary", elem_id="restore-map", min_width=120
            )
            self.upload_map = gr.UploadButton("Upload a map", elem_id="upload-map", min_width=120)

    @property
    def chosen(self) -> list[Any]:
        return [self.task, self.model, self.strength, self.noise_known, self.noise, self.kernel_size, self.format]

    @property
    def steering(self) -> list[Any]:
        return [self.task, self.model, self.about, self.strength, self.noise_panel, self.kernel_panel]

    @property
    def shown(self) -> list[Any]:
        texts = [self.strip, self.viewer, self.downloads, self.kernel_found, self.status, self.suggestion]
        buttons = [self.stop, self.restore_one, self.restore_all, self.restore_map]
        return [*texts, *buttons, self.map_panel, self.editor, self.legend]
