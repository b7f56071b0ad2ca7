"""Open a lesson in JupyterLab in a headless browser, run it, use its scene studio, and keep screenshots.

    .venv/bin/python bench/browser_lesson.py notebooks/00_start_here.ipynb /tmp/shots

Runs once on the light and once on the dark theme. The exit code is 1 if a cell, a callback or the page fails, if the
studio does not answer, or if the page asks another machine for anything. Needs the `browser` extra and a Chromium
(the variable CHROMIUM, by default /usr/bin/chromium). The notebook itself is not changed: a copy is opened.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import TimeoutError as PlaywrightTimeout
from playwright.sync_api import sync_playwright

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
TOKEN = "lesson"
SECONDS_FOR_THE_LESSON = 300
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
QUIET_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
# JavaScript: the kernel answers, and everything it says from now on is kept.
CONNECTED = """() => {
    const session = window.jupyterapp?.shell?.currentWidget?.sessionContext;
    const kernel = session?.isReady && session.session?.kernel;
    return !!kernel && kernel.connectionStatus === 'connected' && kernel.status === 'idle';
}"""
LISTEN = """() => {
    window.lessonTrouble = [];
    window.jupyterapp.shell.currentWidget.sessionContext.iopubMessage.connect((_, message) => {
        const { header, content } = message;
        if (header.msg_type === 'error') window.lessonTrouble.push(`${content.ename}: ${content.evalue}`);
        if (header.msg_type === 'stream' && content.name === 'stderr') window.lessonTrouble.push(content.text);
    });
}"""
RUN_ALL = "() => window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => true)"


@contextmanager
def jupyter_server(folder, home, theme):
    """Start JupyterLab on a free port with settings of its own; yields its address."""
    settings = {
        "apputils-extension/themes": {"theme": theme},
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
        "notebook-extension/tracker": {"windowingMode": "none"},
        "docmanager-extension/plugin": {"autosave": False},
    }
    for name, values in settings.items():
        file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    own = {"CONFIG_DIR": "config", "DATA_DIR": "data", "RUNTIME_DIR": "runtime"}
    environment = os.environ | {f"JUPYTER_{name}": str(home / place) for name, place in own.items()}
    environment |= {
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
        "LDM_TUTOR_PROGRESS": str(home / "progress.json"),
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"]
    command += [f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder}", "--ServerApp.port_retries=0"]
    command += ["--LabApp.expose_app_in_browser=True"]
    with open(home / "server.log", "w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not answers(f"{address}/api?token={TOKEN}"):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"JupyterLab did not start: {(home / 'server.log').read_text()[-2000:]}")
            time.sleep(0.2)
        yield address
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)  # the server and the kernels, which it started
            try:
                server.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False


class LessonPage:
    """One notebook in the browser, with a list of everything that went wrong."""

    def __init__(self, page, address, shots):
        self.page, self.address, self.shots = page, address, shots
        self.problems = []
        page.on("pageerror", lambda error: self.problems.append(f"page error: {str(error)[:300]}"))
        page.on("request", self.note_request)

    def note_request(self, request):
        home = (self.address, self.address.replace("http", "ws"), "data:", "blob:", "about:")
        if not request.url.startswith(home):
            self.problems.append(f"asks another machine: {request.url[:200]}")

    def check(self, fine, problem):
        if not fine:
            self.problems.append(problem)

    def shoot(self, name, element=None):
        (element or self.page).screenshot(path=self.shots / f"{name}.png")

    def run(self, name):
        """Open the notebook, run all cells, and look for errors in them."""
        self.page.goto(f"{self.address}/lab/tree/{name}?token={TOKEN}&reset")
        self.page.wait_for_function(CONNECTED, timeout=90_000)
        self.page.evaluate(LISTEN)
        self.page.set_default_timeout(SECONDS_FOR_THE_LESSON * 1000)
        start = time.monotonic()
        self.page.evaluate(RUN_ALL)
        seconds = time.monotonic() - start
        self.page.set_default_timeout(20_000)
        self.page.wait_for_timeout(500)  # the last output is on its way to the screen
        failed = self.page.locator('[data-mime-type="application/vnd.jupyter.error"]').all_inner_texts()
        self.problems += [f"a cell fails: {text[-300:]}" for text in failed]
        return seconds

    def walk(self):
        """Screenshots from top to bottom, one per screen."""
        panel = self.page.locator(".jp-WindowedPanel-outer").first
        heights = panel.evaluate("panel => [panel.scrollHeight, panel.clientHeight]")
        for number, top in enumerate(range(0, heights[0], max(1, heights[1] - 40))):
            panel.evaluate("(panel, top) => { panel.scrollTop = top }", top)
            self.page.wait_for_timeout(150)
            self.shoot(f"screen_{number:02d}")

    def use_studio(self):
        """Draw with the mouse, change a word, draw with the keyboard, write nonsense: each time look at the answer."""
        page = self.page
        draw = page.get_by_role("button", name="Draw", exact=True)
        if draw.count() == 0:
            self.problems.append("there is no studio: no button called Draw")
            return
        studio = draw.locator("xpath=ancestor::div[contains(@class,'widget-vbox')][1]")
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
        studio.get_by_role("alert").wait_for()
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
    shots.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        home, folder = Path(temporary, "home"), Path(temporary, "lessons")
        home.mkdir()
        folder.mkdir()
        shutil.copy(notebook, folder)
        with jupyter_server(folder, home, THEMES[scheme]) as address, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET_FLAGS)
            page = browser.new_page(viewport={"width": 1200, "height": 1000}, color_scheme=scheme)
            lesson = LessonPage(page, address, shots)
            try:
                seconds = lesson.run(notebook.name)
                lesson.use_studio()
                lesson.walk()
                lesson.problems += [f"kernel: {text[:300]}" for text in page.evaluate("() => window.lessonTrouble")]
                print(f"{notebook.name}, {scheme}: ran in {seconds:.0f} s, {len(lesson.problems)} problems, {shots}")
            except PlaywrightTimeout as error:
                lesson.problems.append(f"no answer in time: {str(error)[:300]}")
                lesson.shoot("stuck")
            finally:
                browser.close()
    return [f"{scheme}: {problem}" for problem in lesson.problems]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("shots", type=Path, help="folder for the screenshots")
    parser.add_argument("--theme", choices=sorted(THEMES), help="only this one")
    options = parser.parse_args()
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
