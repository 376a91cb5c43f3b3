"""The page in a real browser, Chromium without a window. No request may leave this machine in any of the tests.

The pictures of the page that the tests take go to the folder TWOFOLD_SCREENSHOTS, or are deleted.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image
from ui_stubs import Served, picture, serving, until

from twofold.ui.visits import Limits

pytest.importorskip("gradio", reason="the web page needs gradio: pip install 'twofold[ui]'")
playwright = pytest.importorskip(
    "playwright.sync_api", reason="a browser is driven by playwright: pip install playwright"
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if "TWOFOLD_BROWSER_TEST" not in os.environ:
    pytest.skip("needs a quiet machine: make page-test sets TWOFOLD_BROWSER_TEST", allow_module_level=True)
if CHROMIUM is None:
    pytest.skip("there is no Chromium on the path: apt-get install chromium", allow_module_level=True)

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
Open = Callable[..., Any]
SLOW = 120_000
"""Milliseconds that a busy machine may take."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("page"), Limits(megabytes=1, photographs=4)) as made:
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def show(browser: Any, server: Served) -> Iterator[Open]:
    """`show()` opens the page in a browser of its own; what it asked for and its errors are looked at in the end."""
    contexts, asked, errors = list[Any](), list[str](), list[str]()

    def opened(address: str = server.address, *, width: int = 1280, height: int = 900, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(SLOW)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.wait_for_selector("#restore")
        return page

    yield opened
    for context in contexts:
        context.close()
    schemes = {url.partition(":")[0] for url in asked}
    assert schemes <= {"http", "data", "blob"}
    assert {urlsplit(url).hostname for url in asked if url.startswith("http")} == {"127.0.0.1"}
    assert not errors


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    path = tmp_path / "wet day.png"
    picture(240, 320).save(path)
    return path


def add(page: Any, *files: Path) -> None:
    page.set_input_files("#drop input[type=file]", [str(file) for file in files])


def restore(page: Any, button: str = "#restore") -> None:
    before = page.locator("#viewer img").last.get_attribute("src")
    page.click(button)
    page.wait_for_function(
        "before => { const all = document.querySelectorAll('#viewer .compare img');"
        " return all.length == 2 && all[1].getAttribute('src') != before }",
        arg=before,
    )
    page.wait_for_function("!document.querySelector('#restore').disabled")


def picture_of(page: Any, name: str) -> None:
    folder = os.environ.get("TWOFOLD_SCREENSHOTS")
    if folder:
        page.wait_for_timeout(15_000)  # the editor draws itself late
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def restored(page: Any, folder: Path) -> Image.Image:
    with page.expect_download() as download:
        page.click(".downloads .main")
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return Image.open(path)


def mean(image: Image.Image, box: tuple[int, int, int, int] | None = None) -> float:
    part = image.convert("L").crop(box)
    return sum(value * count for value, count in enumerate(part.histogram())) / (part.width * part.height)


def test_from_upload_to_download_with_the_slider_between(show: Open, photograph: Path, tmp_path: Path) -> None:
    page = show()
    add(page, photograph)
    page.wait_for_selector("img[alt='wet day.png, as it came']")
    restore(page)
    slider = page.get_by_label("Where the restored photograph begins")
    position = "getComputedStyle(document.querySelector('.compare')).getPropertyValue('--at')"
    assert page.evaluate(position) == "50%"
    slider.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert page.evaluate(position) == "55%"
    box = slider.bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.2, box["y"] + box["height"] / 2)
    assert abs(float(page.evaluate(position).rstrip("%")) - 20) < 3
    with restored(page, tmp_path) as result, Image.open(photograph) as before:
        assert Path(str(result.filename)).name == "wet day-restored.png"  # type: ignore[attr-defined]
        assert result.size == before.size
        assert mean(result) > mean(before) + 5
    page.get_by_label("pixel by pixel").check()
    assert page.locator(".compare.actual .both").bounding_box()["width"] == pytest.approx(320, abs=1)


def test_strength_changes_what_is_done(show: Open, photograph: Path, tmp_path: Path) -> None:
    page = show()
    add(page, photograph)
    page.wait_for_selector(".alone")
    slider = page.locator("#strength input[type=range]")
    means = []
    for strength in ("1.5", "0"):
        slider.fill(strength)
        restore(page)
        with restored(page, tmp_path) as result:
            means.append(mean(result))
    with Image.open(photograph) as before:
        assert means[0] > means[1] + 5
        assert means[1] == pytest.approx(mean(before), abs=1)


def test_a_stroke_on_the_map_is_seen_in_the_result(show: Open, photograph: Path, tmp_path: Path) -> None:
    page = show()
    add(page, photograph)
    page.wait_for_selector(".alone")
    restore(page)
    page.wait_for_selector("#editor canvas")
    page.wait_for_timeout(4000)  # until the editor has drawn the map
    box = page.locator("#editor canvas").first.bounding_box()
    middle, across = box["y"] + box["height"] / 2, box["x"] + box["width"] / 2
    page.mouse.move(across - 40, middle)
    page.mouse.down()
    for step in range(17):
        page.mouse.move(across - 40 + 5 * step, middle)
    page.mouse.up()
    page.wait_for_timeout(1000)
    with restored(page, tmp_path) as result:
        before = mean(result, (140, 115, 180, 125)), mean(result, (0, 0, 320, 60))
    restore(page, "#restore-map")
    assert "by your map" in page.inner_text(".compare figcaption")
    with restored(page, tmp_path) as result:
        after = mean(result, (140, 115, 180, 125)), mean(result, (0, 0, 320, 60))
    assert after[0] > 240, "white was painted across the middle, and the model makes white of that"
    assert after[0] > before[0] + 30
    assert after[1] == pytest.approx(before[1], abs=2), "the rest stays as the model saw it"


def test_a_map_can_be_uploaded(show: Open, photograph: Path, tmp_path: Path) -> None:
    page = show()
    add(page, photograph)
    page.wait_for_selector(".alone")
    restore(page)
    own = tmp_path / "map.png"
    Image.new("L", (640, 480), 255).save(own)
    with page.expect_file_chooser() as chooser:
        page.click("#upload-map")
    chooser.value.set_files(str(own))
    page.wait_for_selector("text=Your map is in the editor")
    page.wait_for_timeout(3000)
    restore(page, "#restore-map")
    with restored(page, tmp_path) as result:
        assert mean(result) > 250


def test_what_cannot_be_used_is_reported_on_the_page(show: Open, photograph: Path, tmp_path: Path) -> None:
    page = show()
    broken, large = tmp_path / "broken.jpg", tmp_path / "large.jpg"
    broken.write_bytes(b"\xff\xd8\xff nothing")
    large.write_bytes(b"x" * 2_000_000)
    add(page, large)
    page.wait_for_selector("text=large.jpg: 2 MB, the limit of this page is 1 MB; nothing was added")
    add(page, broken, photograph)
    page.wait_for_selector("[role=alert] >> text=broken.jpg: cannot be decoded")
    page.wait_for_selector(".alone")
    assert not page.locator("#refused").count(), "the former message is gone"
    picture_of(page, "error")
    page.click("button[aria-label='Remove wet day.png']")
    page.wait_for_selector(".empty")
    page.click("#restore")
    page.wait_for_selector("[role=alert] >> text=There is no photograph yet; add one first.")


def test_several_photographs_are_restored_at_once(show: Open, tmp_path: Path) -> None:
    page = show()
    files = [tmp_path / f"{number}.jpg" for number in range(5)]
    for number, file in enumerate(files):
        picture(80, 120, seed=number).save(file)
    add(page, *files)
    page.wait_for_selector("text=4.jpg: this page holds 4 photographs at once")
    assert page.locator("[data-photo]").count() == 4
    page.click("#restore-all")
    page.wait_for_selector("text=4 of 4 restored.")
    page.wait_for_selector("text=all 4 as a ZIP file")
    page.locator("[data-photo]").nth(2).click()
    page.wait_for_selector("img[alt='2.jpg, restored']")
    assert page.locator("[data-photo]").nth(2).get_attribute("aria-pressed") == "true"


def test_the_settings_follow_the_model(show: Open, photograph: Path) -> None:
    page = show()
    kernel, noise = page.get_by_text("Largest blur, in pixels"), page.get_by_text("I know the noise level")
    page.get_by_label("Blur").check()
    kernel.wait_for()
    noise.click()
    page.get_by_text("0.02 is 5 grey levels").wait_for()
    page.get_by_label("Low light").check()
    kernel.wait_for(state="hidden")
    noise.wait_for(state="hidden")
    page.get_by_label("Blur").check()
    add(page, photograph)
    page.wait_for_selector(".alone")
    page.get_by_label("Blur").check()
    kernel.wait_for()
    restore(page)
    page.get_by_text("The kernel that was found, confidence 80%").wait_for()


def test_a_telephone_shows_everything_in_its_width(show: Open, photograph: Path) -> None:
    page = show(width=390, height=844, has_touch=True, is_mobile=True, device_scale_factor=2)
    add(page, photograph)
    page.wait_for_selector(".alone")
    restore(page)
    page.wait_for_selector("#editor canvas")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for part in ("#restore", ".compare .both", ".downloads .main", "#editor", "#restore-map"):
        box = page.locator(part).first.bounding_box()
        assert box["x"] >= 0, part
        assert box["x"] + box["width"] <= 390, part
    for button in ("#restore", ".downloads .main", "#restore-map"):
        assert page.locator(button).bounding_box()["height"] >= 36, f"{button} is too low for a finger"
    picture_of(page, "telephone-stub")


def test_pictures_have_texts_and_controls_have_names(show: Open, photograph: Path) -> None:
    page = show()
    add(page, photograph)
    page.wait_for_selector(".alone")
    restore(page)
    assert page.get_attribute("html", "lang") == "en"
    assert page.locator("h1").count() == 1
    assert not page.evaluate("[...document.images].filter(image => !image.hasAttribute('alt')).map(i => i.outerHTML)")
    nameless = page.evaluate(
        """[...document.querySelectorAll('main button, main input:not([type=file]), main select, main a')]
        .filter(e => e.getClientRects().length && !e.closest('#editor'))
        .filter(e => !(e.innerText || '').trim() && !e.getAttribute('aria-label') && !e.getAttribute('aria-labelledby')
          && !e.title && !(e.labels && [...e.labels].some(label => label.innerText.trim())))
        .map(e => e.outerHTML.slice(0, 200))"""
    )
    assert not nameless


def test_the_keyboard_reaches_what_matters(show: Open, photograph: Path) -> None:
    page = show()
    add(page, photograph)
    page.wait_for_selector(".alone")
    restore(page)
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                """(() => { const e = document.activeElement;
                return e.id || e.dataset.example || (e.dataset.photo && 'photo') || e.getAttribute('aria-label')
                  || e.className || e.tagName })()"""
            )
        )
    assert {
        "coffee-rain",
        "restore",
        "photo",
        "Remove wet day.png",
        "Where the restored photograph begins",
        "main",
    } <= {str(name) for name in reached}


def test_an_example_shows_its_damage(show: Open) -> None:
    page = show()
    page.click("[data-example=coffee-dark]")
    page.get_by_text("Suggested: Low light").wait_for()
    assert page.get_by_label("Low light").is_checked()


def test_closing_the_page_deletes_what_was_added(show: Open, server: Served, photograph: Path) -> None:
    page = show()
    add(page, photograph)
    page.wait_for_selector(".alone")
    name = page.locator(".alone img").get_attribute("src").split("/")[1]
    assert (server.root / name).is_dir()
    page.close()
    until(lambda: not (server.root / name).exists())


@pytest.mark.slow
def test_the_command_serves_the_shipped_models(show: Open, tmp_path: Path) -> None:
    """From the command line to a photograph without rain, and an end that leaves nothing."""
    environment = {**os.environ, "TMPDIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "twofold", "ui", "--port", "0", "--no-open"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        assert said.startswith("twofold: the page is at http://127.0.0.1:")
        page = show(said.split()[5])
        page.wait_for_timeout(3000)
        picture_of(page, "ui-start")
        page.click("[data-example=coffee-rain]")
        page.get_by_text("Suggested: Rain").wait_for()
        restore(page)
        picture_of(page, "ui-rain")
        telephone = show(said.split()[5], width=390, height=844, has_touch=True, is_mobile=True)
        telephone.click("[data-example=astronaut-water]")
        telephone.get_by_text("Suggested: Under water").wait_for()
        restore(telephone)
        picture_of(telephone, "ui-telephone")
        for opened in (page, telephone):  # a page that is open reports that its server has gone
            opened.goto("about:blank")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert not list(tmp_path.glob("twofold-ui-*"))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
