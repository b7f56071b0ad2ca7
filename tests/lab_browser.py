"""JupyterLab in a headless browser, for the tests and bench/browser_lesson.py: a server of its own, one page, a log.

Needs the `browser` extra (playwright) and a Chromium: the variable CHROMIUM, or one of the usual names on the path.
Playwright's own browsers are not needed, and nothing is downloaded.
"""

import base64
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

TOKEN = "lesson"
THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
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
SAVE = "() => window.jupyterapp.commands.execute('docmanager:save').then(() => true)"
# The pixels that are on the screen, whatever address the picture has; null while it is loading.
PIXELS = """image => {
    if (!image.complete || !image.naturalWidth) return null;
    const canvas = document.createElement('canvas');
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    canvas.getContext('2d').drawImage(image, 0, 0);
    return canvas.toDataURL('image/png').split(',')[1];
}"""


def find_chromium():
    """Return the path of a Chromium, None where there is none."""
    named = os.environ.get("CHROMIUM")
    return named if named and Path(named).is_file() else next(filter(None, map(shutil.which, NAMES)), None)


def why_not():
    """Say why no browser can be driven here; an empty text where one can."""
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "no playwright: pip install -e '.[browser]'"
    return "" if find_chromium() else f"no browser: install chromium, or set CHROMIUM (looked for {', '.join(NAMES)})"


@contextmanager
def jupyter_server(folder, home, theme=THEMES["light"], **variables):
    """Start JupyterLab on a free port with settings of its own, in `home`; yields its address."""
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
    } | variables
    environment.pop("MPLBACKEND", None)  # a notebook has its own
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
        deadline = time.monotonic() + 90
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


@contextmanager
def browser_page(address, scheme="light"):
    """Open a headless browser with one page, which keeps everything that goes wrong; yields a LabPage."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=QUIET_FLAGS)
        try:
            page = browser.new_page(viewport={"width": 1200, "height": 1000}, color_scheme=scheme)
            yield LabPage(page, address)
        finally:
            browser.close()


class LabPage:
    """JupyterLab in the browser, with a list of everything that went wrong."""

    def __init__(self, page, address):
        self.page, self.address = page, address
        self.problems = []
        page.on("pageerror", lambda error: self.problems.append(f"page error: {str(error)[:300]}"))
        page.on("request", self._note_request)

    def _note_request(self, request):
        home = (self.address, self.address.replace("http", "ws"), "data:", "blob:", "about:")
        if not request.url.startswith(home):
            self.problems.append(f"asks another machine: {request.url[:200]}")

    def open(self, name, connected=True):
        """Open a notebook of the server's folder in a fresh page of the lab, its kernel ready."""
        self.page.set_default_timeout(90_000)
        self.page.goto(f"{self.address}/lab/tree/{name}?token={TOKEN}&reset")
        if connected:
            self.page.wait_for_function(CONNECTED)
            self.page.evaluate(LISTEN)
        self.page.set_default_timeout(20_000)

    def run_all(self, seconds=300):
        """Run all cells and look for errors in them; returns the seconds that it took."""
        self.page.set_default_timeout(seconds * 1000)
        start = time.monotonic()
        self.page.evaluate(RUN_ALL)
        took = time.monotonic() - start
        self.page.set_default_timeout(20_000)
        self.page.wait_for_timeout(500)  # the last output is on its way to the screen
        failed = self.page.locator('[data-mime-type="application/vnd.jupyter.error"]').all_inner_texts()
        self.problems += [f"a cell fails: {text[-300:]}" for text in failed]
        return took

    def trouble(self):
        """Everything that went wrong so far: on the page, in the kernel (callbacks too), and towards the network."""
        heard = self.page.evaluate("() => window.lessonTrouble ?? []")
        return [*self.problems, *(f"kernel: {text[:300]}" for text in heard)]

    def cell(self, number):
        """The code cell of this number, from 0, with its output."""
        return self.page.locator(".jp-CodeCell").nth(number)

    def pixels(self, image):
        """The pixels of an `<img>` as they are on the screen now, (height, width, 3); waits until it is loaded."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if data := image.evaluate(PIXELS):
                return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)
            self.page.wait_for_timeout(20)
        raise AssertionError("the picture never loads")

    def changed(self, image, before, seconds=20):
        """Wait until the pixels of an image are others than `before`, and still; returns them."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            now = self.pixels(image)
            if now.shape != before.shape or (now != before).any():
                self.page.wait_for_timeout(100)
                return self.pixels(image)
            self.page.wait_for_timeout(20)
        raise AssertionError(f"the picture stays the same for {seconds} s")

    def unchanged(self, image, before, milliseconds=700):
        """Wait, then say whether the pixels are still those of `before`."""
        self.page.wait_for_timeout(milliseconds)
        now = self.pixels(image)
        return now.shape == before.shape and bool((now == before).all())


def write_notebook(path, *cells):
    """Write a notebook of these code cells, without outputs."""
    import nbformat

    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    notebook.metadata["kernelspec"] = kernel
    nbformat.write(notebook, path)
