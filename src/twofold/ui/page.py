"""What the page shows, and what its buttons set off, in gradio."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
from torch import Tensor

from twofold.contracts import TwofoldError
from twofold.restorers.blind import SEARCH_SHARE
from twofold.ui import html, work
from twofold.ui.examples import example
from twofold.ui.parts import DOWNLOAD_FORMATS, PageParts
from twofold.ui.restoring import Models, PageProgress, Wishes, is_noise
from twofold.ui.visits import Photo, Visit, Visits

AS_SUGGESTED = "suggested"
_SHOW_VIEWER = """() => {  // on a phone it lies below the buttons
  if (innerWidth < 700) document.querySelector('#viewer').scrollIntoView({behavior: 'smooth', block: 'center'});
}"""
PROGRESS = gr.Progress()
Changes = dict[Any, Any]


@dataclass(frozen=True)
class Choice:
    """The settings of the page, in the order in which gradio hands them over."""

    task: str
    model: str
    strength: float
    noise_known: bool
    noise: float
    kernel_size: int
    format: str

    def wishes(self, visit: Visit, guidance: Tensor | None) -> Wishes:
        """What a restoration is asked for. guidance: a map `(1, 1, H, W)`, or None for the model's own."""
        level = self.noise if self.noise_known else None
        return Wishes(self.strength, level, visit.kernel or int(self.kernel_size), guidance)


@dataclass(eq=False)
class Page:
    """What the events need: the visits and the models. The methods that end in events take gradio's values."""

    visits: Visits
    models: Models

    def __post_init__(self) -> None:
        self.tasks = self.models.tasks()

    def build(self) -> gr.Blocks:
        """The page with its parts and events."""
        # Uploads are copied into the visit when they arrive; what gradio keeps of them is deleted soon.
        with gr.Blocks(title="twofold", analytics_enabled=False, delete_cache=(60, 900), fill_width=True) as blocks:
            self.parts = PageParts(
                self._task_choices(), self.models.of_task(next(iter(self.tasks))), self.visits.limits
            )
            self._connect(blocks)
        return blocks

    def _connect(self, blocks: gr.Blocks) -> None:
        p = self.parts
        everything = [*p.shown, *p.steering]
        private: dict[str, Any] = {"api_visibility": "private"}
        quick = {**private, "show_progress": "hidden"}
        slow = {**private, "show_progress_on": p.viewer}
        p.drop.upload(self.received, [p.drop], [p.drop, *everything], **slow)
        p.examples.click(self.take_example, None, everything, **slow)
        p.strip.click(self.choose, None, everything, **quick)
        p.task.input(self.task_chosen, [p.task], p.steering, **quick)
        p.model.input(self.model_chosen, [p.task, p.model], p.steering, **quick)
        p.noise_known.input(lambda known: gr.update(visible=known), [p.noise_known], [p.noise], **quick)
        for change in (p.kernel_file.upload, p.kernel_file.clear):
            change(self.kernel_received, [p.kernel_file], [p.kernel_size], **quick)
        p.upload_map.upload(self.map_received, [p.upload_map, p.task, p.model], p.shown, **quick)
        one_by_one = {**slow, "concurrency_limit": 1, "concurrency_id": "restoring"}
        p.restore_one.click(self.restore_current, p.chosen, p.shown, **one_by_one)
        p.restore_all.click(self.restore_every, p.chosen, p.shown, **one_by_one)
        p.restore_map.click(self.restore_by_map, [p.editor, *p.chosen], p.shown, **one_by_one)
        for button in (p.restore_one, p.restore_all, p.restore_map):
            button.click(None, js=_SHOW_VIEWER, **private)
        p.stop.click(self.stopping, None, [p.status], queue=False, **quick)
        blocks.load(self.arrived, None, everything, **quick)
        blocks.unload(self.left)

    # What the settings show

    def _task_choices(self, visit: Visit | None = None) -> list[tuple[str, str]]:
        choices = [(label, task) for task, label in self.tasks.items()]
        tasks = {photo.guess.task for photo in visit.photos.values()} & {*self.tasks} if visit else set()
        return [*choices, ("As suggested for each", AS_SUGGESTED)] if visit and len(tasks) > 1 else choices

    def _steering(self, task: str, name: str | None = None) -> Changes:
        """The settings for a task, and for one of its models."""
        if task == AS_SUGGESTED:
            hidden = gr.update(visible=False)
            about = "<p class=hint>Each photograph by the model of its suggestion, at full strength.</p>"
            changes: Changes = dict.fromkeys(
                (self.parts.model, self.parts.strength, self.parts.noise_panel, self.parts.kernel_panel), hidden
            )
            return {**changes, self.parts.about: about}
        names = self.models.of_task(task)
        chosen = name if name in names else names[0]
        model, offer = self.models[chosen], self.models.shipped[chosen]
        return {
            self.parts.model: gr.update(choices=names, value=chosen, visible=len(names) > 1),
            self.parts.about: html.about(offer, model.kind),
            self.parts.strength: gr.update(visible=True),
            self.parts.noise_panel: gr.update(visible=is_noise(model.kind)),
            self.parts.kernel_panel: gr.update(visible=model.takes_kernel),
        }

    def task_chosen(self, task: str) -> Changes:
        """Shows the settings of a task."""
        return self._steering(task)

    def model_chosen(self, task: str, name: str) -> Changes:
        """Shows the settings of a model."""
        return self._steering(task, name)

    # What the rest of the page shows

    def _show(self, visit: Visit, message: str = "", problems: Sequence[str] = (), *, at_work: bool = False) -> Changes:
        """Everything of a visit but the settings. at_work: more photographs follow; the editor is left as it is, since
        it may hold strokes.
        """
        photo = visit.photos.get(visit.current)
        changes: Changes = {
            self.parts.strip: html.strip(visit, visit.current),
            self.parts.viewer: html.compare(visit, photo),
            self.parts.downloads: html.downloads(visit, photo),
            self.parts.kernel_found: html.kernel(visit, photo),
            self.parts.status: html.status(message, problems),
            self.parts.suggestion: html.suggestion(photo, self.tasks),
            **self._buttons(visit, at_work=at_work),
        }
        if at_work:
            return changes
        kind = self.models[photo.map_of].kind if photo and photo.map_of else None
        if photo is None or kind is None:
            return {**changes, self.parts.map_panel: gr.update(visible=False), self.parts.editor: None}
        return {
            **changes,
            self.parts.map_panel: gr.update(visible=True),
            self.parts.editor: gr.update(value=work.shown_map(photo)),
            self.parts.legend: html.map_legend(photo, kind),
        }

    def _settled(self, visit: Visit, message: str = "", problems: Sequence[str] = ()) -> Changes:
        """Everything, the settings too, as the photograph in view suggests or had them."""
        photo = visit.photos.get(visit.current)
        task, name = next(iter(self.tasks)), None
        if photo is not None and photo.model in self.models.shipped:
            name = photo.model
            task = self.models.shipped[name].task
        elif photo is not None and photo.guess.task in self.tasks:
            task = photo.guess.task
        chosen = gr.update(choices=self._task_choices(visit), value=task)
        return {**self._show(visit, message, problems), self.parts.task: chosen, **self._steering(task, name)}

    # Arriving, adding, choosing, leaving

    def arrived(self, request: gr.Request) -> Changes:
        """Begins a visit."""
        return self._settled(self._visit(request))

    def left(self, request: gr.Request) -> None:
        """Ends a visit and deletes its files."""
        self.visits.end(request.session_hash or "")

    def received(self, files: list[str] | None, request: gr.Request) -> Iterator[Changes]:
        """Adds uploaded photographs."""
        visit, problems, added = self._visit(request), list[str](), list[Photo]()
        for file in files or []:
            try:
                self.visits.check_room()
                added.append(work.receive(visit, Path(file), Path(file).name, self.visits.limits))
            except TwofoldError as error:
                problems.append(str(error))
            except OSError as error:
                problems.append(f"{Path(file).name}: cannot be kept ({error.strerror or error}); add it again")
        self.visits.take(Path(file) for file in files or [])  # after all, since two that are equal have one path
        if added:
            visit.current = added[0].number
        said = f"{len(added)} added." if len(added) > 1 else ""
        yield {**self._settled(visit, said, problems), self.parts.drop: None}

    def take_example(self, event: gr.EventData, request: gr.Request) -> Changes:
        """Adds an example photograph."""
        visit = self._visit(request)
        file = example(str(event._data.get("example")), self.visits.root)
        if file is None:
            return self._settled(visit)
        try:
            visit.current = work.receive(visit, file, file.name, self.visits.limits).number
        except TwofoldError as error:
            return self._settled(visit, problems=[str(error)])
        return self._settled(visit)

    def choose(self, event: gr.EventData, request: gr.Request) -> Changes:
        """A click on a photograph of the strip, or on its cross."""
        visit = self._visit(request)
        if "remove" in event._data:
            visit.remove(int(event._data["remove"]))
        elif int(event._data.get("photo", 0)) in visit.photos:
            visit.current = int(event._data["photo"])
        return self._settled(visit)

    def map_received(self, file: str, task: str, name: str, request: gr.Request) -> Changes:
        """Takes an uploaded guidance map."""
        visit = self._visit(request)
        photo = visit.photos.get(visit.current)
        if photo is None:
            return self._show(visit, problems=["There is no photograph for this map; add one first."])
        kind = self.models[name].kind
        if kind is None:
            return self._show(visit, problems=[f"{name} takes no map."])
        try:
            work.uploaded_map(photo, Path(file), Path(file).name, kind, name)
        except TwofoldError as error:
            return self._show(visit, problems=[str(error)])
        return self._show(visit, "Your map is in the editor; press “Restore with this map” to use it.")

    def kernel_received(self, file: str | None, request: gr.Request) -> Any:
        """Keeps the kernel with the visit; with one given, none is searched for."""
        visit = self._visit(request)
        visit.kernel = None if file is None else work.keep_kernel(visit, Path(file))
        return gr.update(visible=visit.kernel is None)

    # Restoring

    def _buttons(self, visit: Visit, *, at_work: bool) -> Changes:
        many = len(visit.photos) > 1
        return {
            self.parts.stop: gr.update(visible=at_work),
            self.parts.restore_one: gr.update(interactive=not at_work, value="Restore this one" if many else "Restore"),
            self.parts.restore_all: gr.update(
                interactive=not at_work, visible=many, value=f"Restore all {len(visit.photos)}"
            ),
            self.parts.restore_map: gr.update(interactive=not at_work),
        }

    def stopping(self, request: gr.Request) -> str:
        """Stops the work of a visit."""
        self._visit(request).stop.set()
        return html.status("Stopping …")

    def restore_current(self, request: gr.Request, progress: gr.Progress = PROGRESS, *chosen: Any) -> Iterator[Changes]:
        """Restores the photograph in view."""
        visit = self._visit(request)
        photos = [photo for photo in visit.photos.values() if photo.number == visit.current]
        yield from self._restore(visit, photos, Choice(*chosen), progress)

    def restore_every(self, request: gr.Request, progress: gr.Progress = PROGRESS, *chosen: Any) -> Iterator[Changes]:
        """Restores every photograph of the visit."""
        visit = self._visit(request)
        yield from self._restore(visit, list(visit.photos.values()), Choice(*chosen), progress)

    def restore_by_map(
        self, request: gr.Request, progress: gr.Progress = PROGRESS, drawn: Any = None, *chosen: Any
    ) -> Iterator[Changes]:
        """Restores the photograph in view by the map in the editor."""
        visit = self._visit(request)
        photo = visit.photos.get(visit.current)
        if photo is None or not photo.map_of or not drawn or drawn.get("composite") is None:
            yield self._show(visit, problems=["There is no map yet; restore the photograph once, or upload a map."])
            return
        guidance = work.painted_map(photo, drawn["composite"])
        # What is seen in the editor is used: the strength is in it already.
        by_map = replace(Choice(*chosen), model=photo.map_of, strength=1.0)
        yield from self._restore(visit, [photo], by_map, progress, guidance)

    def _restore(
        self, visit: Visit, photos: list[Photo], chosen: Choice, progress: gr.Progress, guidance: Tensor | None = None
    ) -> Iterator[Changes]:
        """One photograph after the other; what fails is said and the rest goes on."""
        if not photos:
            yield self._show(visit, problems=["There is no photograph yet; add one first."])
            return
        visit.stop.clear()
        yield self._buttons(visit, at_work=True)
        problems, done = list[str](), 0
        for at, photo in enumerate(photos):
            if visit.stop.is_set():
                break
            if photo.number not in visit.photos:  # removed meanwhile
                continue

            kernel = chosen.wishes(visit, None).kernel
            searched = self.models[chosen.model].takes_kernel and not work.knows_kernel(photo, kernel)

            def report(done: int, of: int, at: int = at, photo: Photo = photo, searched: bool = searched) -> None:
                if visit.stop.is_set():
                    raise work.Stopped
                share = done / max(of, 1)
                searching = searched and share < SEARCH_SHARE
                doing = f"{photo.name}: searching for the kernel" if searching else photo.name
                progress((at + share) / len(photos), desc=doing)

            try:
                report(0, 1)
                self._restore_one(visit, photo, chosen, guidance, report)
                done += 1
            except work.Stopped:
                break
            except TwofoldError as error:
                photo.failed = True
                problems.append(str(error))
            except Exception as error:  # the page must stay usable, and the terminal says where it was
                traceback.print_exc()
                photo.failed = True
                problems.append(f"{photo.name}: a fault in the program ({type(error).__name__}); see the terminal")
            if at + 1 < len(photos):
                yield self._show(visit, f"{done} of {len(photos)} restored …", problems, at_work=True)
        said = "Stopped. " if visit.stop.is_set() else ""
        said += f"{done} of {len(photos)} restored." if len(photos) > 1 else "Restored." if done else ""
        yield self._show(visit, said, problems)

    def _restore_one(
        self, visit: Visit, photo: Photo, chosen: Choice, guidance: Tensor | None, report: PageProgress
    ) -> None:
        model, wishes = chosen.model, chosen.wishes(visit, guidance)
        if chosen.task == AS_SUGGESTED and guidance is None:
            if photo.guess.task not in self.tasks:
                raise TwofoldError(f"{photo.name}: nothing was suggested; choose what is wrong with it")
            model, wishes = self.models.of_task(photo.guess.task)[0], Wishes()
        elif not self.models[model].takes_kernel:
            wishes = replace(wishes, kernel=Wishes().kernel)
        if not is_noise(self.models[model].kind):
            wishes = replace(wishes, noise_level=None)
        work.restore_photograph(
            photo, self.models, model, wishes, suffix=DOWNLOAD_FORMATS[chosen.format], progress=report
        )

    def _visit(self, request: gr.Request) -> Visit:
        return self.visits.of(request.session_hash or "")
