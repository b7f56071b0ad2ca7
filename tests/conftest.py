"""What every test runs under: no network, two threads, fixed seeds, array annotations checked.

`make unit` loads this file in the usual way. `make notebooks` loads it with `-p conftest`; the notebooks' kernels are
processes of their own, so the network block reaches them as a start-up file of a throw-away IPython profile.
"""

import inspect
import logging
import os
import random
import sys
import tempfile
import types
from pathlib import Path

import pytest

NUM_THREADS = 2
# The packages whose annotations are checked at every call. Empty this list to switch the check off.
CHECKED_PACKAGES = ["ldm_tutor.models", "ldm_tutor.nn"]
# Tests, functions or files that count as slow beside those with the mark: `pytest tests --note-slow` renews the list.
SLOW_LIST = Path(__file__).with_name("slow_tests.txt")
SLOW_SECONDS = 1


def block_network():
    """Make every connection that leaves this machine an error that names the address.

    Stands on its own (it imports what it needs): its source is also what a notebook's kernel runs when it starts.
    """
    import ipaddress
    import socket

    class NetworkBlockedError(RuntimeError):
        """A test or a lesson tried to reach another machine."""

    def refuse(host):
        raise NetworkBlockedError(f"network: tests and lessons run without it, and this one asked for {host!r}")

    def is_local(host):
        name = host.decode() if isinstance(host, bytes) else host
        if name in (None, "", "localhost", socket.gethostname()):
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or address.is_unspecified

    def guarded_method(real):
        def connect(self, address):
            if self.family in (socket.AF_INET, socket.AF_INET6) and not is_local(address[0]):
                refuse(address[0])
            return real(self, address)

        return connect

    def guarded_lookup(real):
        def getaddrinfo(host, *args, **kwargs):
            if not is_local(host):
                refuse(host)
            return real(host, *args, **kwargs)

        return getaddrinfo

    if getattr(socket, "ldm_tutor_blocked", False):
        return
    socket.socket.connect = guarded_method(socket.socket.connect)
    socket.socket.connect_ex = guarded_method(socket.socket.connect_ex)
    socket.getaddrinfo = guarded_lookup(socket.getaddrinfo)
    socket.ldm_tutor_blocked = True


def write_kernel_profile(folder):
    """Write an IPython profile into `folder` that blocks the network when a kernel starts."""
    startup = Path(folder) / "profile_default" / "startup"
    startup.mkdir(parents=True)
    source = inspect.getsource(block_network)
    (startup / "00_no_network.py").write_text(f"{source}\n\nblock_network()\ndel block_network\n", encoding="utf-8")


def check_annotations(packages):
    """Check shapes and types at run time in every function of `packages` that is imported after this call."""
    try:
        from beartype import BeartypeConf, beartype
        from jaxtyping import install_import_hook
    except ImportError:  # run without the `test` extra: the tests still mean something
        return
    # The hook takes the checker by name, so the configured one gets a module to be named in.
    # is_pep484_tower: an int is welcome where a float is expected.
    home = types.ModuleType("ldm_tutor_tests_typechecker")
    home.check = beartype(conf=BeartypeConf(is_pep484_tower=True))
    sys.modules[home.__name__] = home
    install_import_hook(packages, f"{home.__name__}.check")


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["LDM_TUTOR_PROGRESS"] = "off"  # whose exercises are passed must not show in what is compared
block_network()
if CHECKED_PACKAGES:
    check_annotations(CHECKED_PACKAGES)


def pytest_configure(config):
    if config.getoption("nbval", default=False):
        import matplotlib.font_manager  # noqa: F401  (makes its font cache here, where its message spoils no output)

        config.kernel_profile = tempfile.TemporaryDirectory(prefix="ldm_tutor_ipython_")
        write_kernel_profile(config.kernel_profile.name)
        os.environ["IPYTHONDIR"] = config.kernel_profile.name
    else:
        os.environ["MPLBACKEND"] = "Agg"  # no window; a notebook keeps its inline figures


def pytest_addoption(parser):
    parser.addoption(
        "--note-slow", action="store_true", help=f"write what takes more than {SLOW_SECONDS} s into {SLOW_LIST.name}"
    )


def read_slow_list(path=SLOW_LIST):
    """Return the entries of the list of slow tests, none where there is no list."""
    return set(path.read_text(encoding="utf-8").split("\n")) - {""} if path.is_file() else set()


def is_listed(name, entries):
    """Whether a test is in the list: by its whole name, by its function, or by its file."""
    function = name.partition("[")[0]
    return bool({name, function, function.partition("::")[0]} & entries)


@pytest.hookimpl(tryfirst=True)
def pytest_itemcollected(item):
    if is_listed(item.nodeid, SLOW_ENTRIES):
        item.add_marker(pytest.mark.slow)


def pytest_runtest_logreport(report):
    SECONDS[report.nodeid] = SECONDS.get(report.nodeid, 0.0) + report.duration


def note_slow(seconds, path=SLOW_LIST):
    """Renew the list: what ran is judged anew, what did not run stays."""
    entries = {each for each in read_slow_list(path) if not any(is_listed(name, {each}) for name in seconds)}
    entries |= {name for name, took in seconds.items() if took > SLOW_SECONDS}
    path.write_text("".join(f"{each}\n" for each in sorted(entries)), encoding="utf-8", newline="\n")


def pytest_sessionfinish(session):
    if session.config.getoption("note_slow", default=False) and SECONDS:
        note_slow(SECONDS)


SLOW_ENTRIES = read_slow_list()
SECONDS = {}


def pytest_collection_modifyitems(config, items):
    """Leave out what is marked `full`, unless `-m` asks for it: it takes minutes and gigabytes."""
    if "full" in (config.getoption("markexpr", default="") or ""):
        return
    left_out = [item for item in items if item.get_closest_marker("full")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("full")]


def pytest_unconfigure(config):
    profile = getattr(config, "kernel_profile", None)
    if profile is not None:
        profile.cleanup()


@pytest.fixture(autouse=True, scope="session")
def two_threads():
    """Two threads for every test: the same on a laptop and on a large machine."""
    import torch

    torch.set_num_threads(NUM_THREADS)


@pytest.fixture(autouse=True)
def fixed_seeds(two_threads):
    """Every test starts from the same random state, whichever tests ran before it."""
    import numpy
    import torch

    random.seed(0)
    numpy.random.seed(0)  # noqa: NPY002  (the legacy state is what a library may read)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def nothing_left():
    """No test meets a figure that another has left open, nor the stream that another's command wrote its news to."""
    logging.getLogger("ldm_tutor").handlers.clear()
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        pyplot.close("all")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A folder with a tiny model of random weights: every part is real, and drawing takes milliseconds."""
    from tiny import save_folder

    return save_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def unchecked_annotations():
    """The package as a user runs it: for tests of the package's own errors about wrong shapes and types.

    Without it the annotation check refuses a wrong shape first, with an error of its own.
    """
    import jaxtyping

    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
