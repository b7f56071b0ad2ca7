"""Open a lesson in JupyterLab in a headless browser, run it, use its widgets, and keep screenshots.

    .venv/bin/python bench/browser_lesson.py notebooks/00_start_here.ipynb /tmp/shots

Runs once on the light and once on the dark theme. The exit code is 1 if a cell, a callback or the page fails, if a
widget does not answer, or if the page asks another machine for anything. Needs the `browser` extra and a Chromium
(the variable CHROMIUM, or one of the usual names). The notebook itself is not changed: a copy is opened.
tests/test_browser.py does the same for small notebooks, and looks at the pixels.
"""

import argparse
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from lab_browser import THEMES, browser_page, jupyter_server, why_not  # noqa: E402

WAITING = re.compile(r"^(Draw|Fill)$")


class Visit:
    """One lesson in the browser, its screenshots and what went wrong."""

    def __init__(self, lab, shots):
        self.lab, self.page, self.shots, self.problems = lab, lab.page, shots, []

    def check(self, fine, problem):
        if not fine:
            self.problems.append(problem)

    def shoot(self, name, element=None):
        (element or self.page).screenshot(path=self.shots / f"{name}.png")

    def walk(self):
        """Screenshots from top to bottom, one per screen."""
        panel = self.page.locator(".jp-WindowedPanel-outer").first
        heights = panel.evaluate("panel => [panel.scrollHeight, panel.clientHeight]")
        for number, top in enumerate(range(0, heights[0], max(1, heights[1] - 40))):
            panel.evaluate("(panel, top) => { panel.scrollTop = top }", top)
            self.page.wait_for_timeout(150)
            self.shoot(f"screen_{number:02d}")

    def use_sliders(self):
        """Move every slider of every live figure by a key; its picture has to become another one."""
        views = self.page.locator(".jp-OutputArea-output:has(.ldm-live)")
        for k in range(views.count()):
            view = views.nth(k)
            view.scroll_into_view_if_needed()
            self.shoot(f"widget_{k}_first", view)
            if view.get_by_role("button", name=WAITING).count():
                continue  # a studio waits for its button
            sliders, image = view.get_by_role("slider"), view.locator("img").first
            for number in range(sliders.count()):
                before = self.lab.pixels(image)
                sliders.nth(number).focus()
                self.page.keyboard.press("ArrowRight")
                try:
                    self.lab.changed(image, before)
                except AssertionError as error:
                    self.problems.append(f"widget {k}, slider {number}: {error}")
                self.shoot(f"widget_{k}_slider_{number}", view)

    def use_studio(self):
        """Draw with the mouse, change a word, draw with the keyboard, write nonsense: each time look at the answer."""
        page = self.page
        draw = page.get_by_role("button", name="Draw", exact=True)
        studio = draw.locator("xpath=ancestor::div[contains(@class,'widget-vbox')][1]")
        if studio.get_by_label("Object", exact=True).count() == 0:
            return  # none here, or another studio with a button of this name
        studio.scroll_into_view_if_needed()
        picture, sentence = studio.locator("img").first, studio.get_by_label("Sentence")
        self.shoot("studio_1_first", studio)

        before = picture.get_attribute("src")
        seed = studio.get_by_label("Seed", exact=True)
        seed.fill("11")
        seed.press("Tab")
        draw.click()
        self.wait_for_picture(picture, before, "after a click on Draw")
        self.shoot("studio_2_another_seed", studio)

        said = sentence.input_value()
        studio.get_by_label("Object", exact=True).select_option("rocket")
        page.wait_for_timeout(500)
        self.check("rocket" in sentence.input_value(), f"the sentence does not follow the words: {said}")
        before = picture.get_attribute("src")
        draw.focus()
        page.keyboard.press("Enter")
        self.wait_for_picture(picture, before, "after Enter on Draw")
        self.check(studio.get_by_text("rocket", exact=False).count() > 0, "the caption does not name the sentence")
        self.shoot("studio_3_other_words", studio)

        sentence.fill("a red bycicle")
        sentence.press("Enter")
        draw.click()
        studio.get_by_text("near it: bicycle").wait_for()
        self.shoot("studio_4_unknown_word", studio)
        sentence.fill("")
        sentence.press("Enter")
        draw.click()
        studio.get_by_text("Write a sentence first").wait_for()
        self.shoot("studio_5_empty", studio)

    def wait_for_picture(self, picture, before, when):
        """Wait until another picture is there and the studio says that it is done."""
        deadline = time.monotonic() + 30
        while picture.get_attribute("src") == before and time.monotonic() < deadline:
            self.page.wait_for_timeout(50)
        self.check(picture.get_attribute("src") != before, f"the picture stays the same {when}")
        self.page.get_by_text("Drawn in").first.wait_for()
        self.page.wait_for_timeout(300)


def visit(notebook, shots, scheme):
    """Run everything on one theme; returns the problems."""
    from playwright.sync_api import TimeoutError as PlaywrightTimeout

    shots.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        home, folder = Path(temporary, "home"), Path(temporary, "lessons")
        home.mkdir()
        folder.mkdir()
        shutil.copy(notebook, folder)
        with jupyter_server(folder, home, THEMES[scheme]) as address, browser_page(address, scheme) as lab:
            lesson = Visit(lab, shots)
            try:
                lab.open(notebook.name)
                seconds = lab.run_all()
                lesson.use_sliders()
                lesson.use_studio()
                lesson.walk()
                print(f"{notebook.name}, {scheme}: ran in {seconds:.0f} s, screenshots in {shots}")
            except PlaywrightTimeout as error:
                lesson.problems.append(f"no answer in time: {str(error)[:300]}")
                lesson.shoot("stuck")
            return [f"{scheme}: {problem}" for problem in [*lesson.problems, *lab.trouble()]]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("shots", type=Path, help="folder for the screenshots")
    parser.add_argument("--theme", choices=sorted(THEMES), help="only this one")
    options = parser.parse_args()
    if why_not():
        parser.error(why_not())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # stopped from outside, the server is stopped too
    themes = [options.theme] if options.theme else list(THEMES)
    problems = [
        problem for theme in themes for problem in visit(options.notebook.resolve(), options.shots / theme, theme)
    ]
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
