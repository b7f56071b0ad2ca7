"""The repository around the package: its lists agree, its files parse, its documents say what is there."""

import os
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
TEXT_ROOTS = ("ldm_tutor", "tests", "notebooks", "bench", "site", "docs", ".github", ".ci", "data/weights")
TEXT_SUFFIXES = {
    ".py", ".md", ".toml", ".yml", ".yaml", ".txt", ".cfg", ".cff", ".json", ".csv", ".ipynb", ".js", ".css", ".sh", ""
}  # fmt: skip
# Written in pieces, so that this file does not hold what it forbids.
REGISTRY_HOSTS = [
    "py" + "pi.org",
    "python" + "hosted.org",
    "download." + "pytorch.org",
    "registry." + "npmjs.org",
    "conda." + "anaconda.org",
]
INDEX_OPTIONS = ["--" + "index-url", "--extra-" + "index-url", "--find" + "-links", "--trusted" + "-host"]
HOME_PATH = re.compile(r"(?<![\w.$}>-])/(?:home|Users|root|work)/[\w.]|[A-Za-z]:\\+Users\\+\w")


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def text_files():
    """Every text file that belongs to the repository: those at the top, and those under the known folders."""
    found = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in TEXT_ROOTS:
        found += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    skipped = {"__pycache__", ".ipynb_checkpoints"}
    return [path for path in found if path.suffix in TEXT_SUFFIXES and not skipped & set(path.parts)]


@pytest.fixture(scope="module")
def project():
    return tomllib.loads(read("pyproject.toml"))["project"]


@pytest.fixture(scope="module")
def pins():
    return dict(line.split("==") for line in read("constraints.txt").splitlines())


def direct_requirements(project):
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    return [Requirement(line) for line in project["dependencies"] + extras]


# --- the lists of dependencies


def test_conda_lists_the_same_dependencies(project):
    environment = yaml.safe_load(read("environment.yml"))
    plain = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (from_pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    options = [line for line in from_pip if line.startswith("-")]
    assert [line for line in from_pip if line not in options] == project["dependencies"]
    assert options == ["-c constraints.txt", "-e ."]
    assert "pip" in plain
    (python,) = [line.removeprefix("python") for line in plain if line.startswith("python")]
    oldest = project["requires-python"].removeprefix(">=")
    assert python.lstrip("=>").split(",")[0] == oldest


def test_constraints_are_names_and_versions():
    lines = read("constraints.txt").splitlines()
    assert len(lines) > 50
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9][\w.-]*==\d[\w.]*", line)] == []
    names = [normal(line.split("==")[0]) for line in lines]
    assert len(names) == len(set(names))
    assert "ldm-tutor" not in names


def test_every_direct_dependency_is_pinned_within_its_bounds(project, pins):
    pinned = {normal(name): version for name, version in pins.items()}
    wrong = [
        str(requirement)
        for requirement in direct_requirements(project)
        if not requirement.specifier.contains(pinned.get(normal(requirement.name), "0"), prereleases=True)
        or normal(requirement.name) not in pinned
    ]
    assert wrong == []


def test_bounds_are_lower_bounds(project):
    bounds = [bound for requirement in direct_requirements(project) for bound in requirement.specifier]
    assert [str(bound) for bound in bounds if bound.operator != ">="] == []


def test_torch_and_torchvision_match(pins):
    torch = [int(part) for part in pins["torch"].split(".")]
    torchvision = [int(part) for part in pins["torchvision"].split(".")]
    assert torch[0] == 2 and torchvision == [0, torch[1] + 15, torch[2]]


# --- versions


def test_one_version_everywhere(project):
    citation = yaml.safe_load(read("CITATION.cff"))
    newest = re.search(r"^## (\d+\.\d+\.\d+) - (\d{4}-\d{2}-\d{2})$", read("CHANGELOG.md"), re.MULTILINE)
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert str(citation["version"]) == newest[1] == project["version"]
    assert str(citation["date-released"]) == newest[2]


def test_licences_are_the_declared_ones(project):
    assert project["license"] == "MIT AND CC-BY-4.0"
    assert yaml.safe_load(read("CITATION.cff"))["license"] == ["MIT", "CC-BY-4.0"]
    assert "MIT License" in read("LICENSE") and "LICENSE-TEXT" in read("LICENSE")
    assert "SPDX identifier: CC-BY-4.0" in read("LICENSE-TEXT")
    assert project["license-files"] == ["LICENSE", "LICENSE-TEXT"]


# --- the two commands and what runs them


def test_the_makefile_has_the_two_commands():
    makefile = read("Makefile")
    for target in ("lab", "test", "setup", "lint", "types", "unit", "notebooks", "clean", "help"):
        assert re.search(rf"^{target}:.*## \w", makefile, re.MULTILINE), target
    assert re.search(r"^test: lint types unit notebooks\b", makefile, re.MULTILINE)
    assert ".DEFAULT_GOAL := lab" in makefile
    first = re.search(r"^FIRST\s*:= (.+)$", makefile, re.MULTILINE)[1]
    assert (ROOT / first).is_file()


def test_ci_runs_make_test():
    script = ROOT / ".ci" / "run"
    assert os.name == "nt" or os.access(script, os.X_OK)
    lines = script.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines and "make test" in lines


def test_workflows_run_both_commands_on_three_systems(project):
    workflow = yaml.safe_load(read(".github/workflows/ci.yml"))
    assert set(workflow["jobs"]) == {"test", "lab"}
    for name, job in workflow["jobs"].items():
        matrix = job["strategy"]["matrix"]
        assert {system.split("-")[0] for system in matrix["os"]} == {"ubuntu", "macos", "windows"}
        assert matrix["python"][0] == project["requires-python"].removeprefix(">=")
        assert any(f"make {name}" in step.get("run", "") for step in job["steps"])
    for path in (ROOT / ".github" / "workflows").iterdir():
        assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"], dict), path.name


def test_windows_runs_the_lines_that_the_documents_give():
    jobs = yaml.safe_load(read(".github/workflows/ci.yml"))["jobs"]
    for job, document in (("test", "CONTRIBUTING.md"), ("lab", "README.md")):
        runs = [step["run"] for step in jobs[job]["steps"] if step.get("shell") == "pwsh"]
        ran = {line.strip() for run in runs for line in run.splitlines()}
        (block,) = re.findall(r"```powershell\n(.*?)```", read(document), re.DOTALL)
        lines = [line for line in block.splitlines() if "jupyterlab" not in line]
        assert len(lines) >= 2
        assert [line for line in lines if line not in ran] == [], document


def test_every_system_runs_the_same_notebook_check():
    options = re.search(r"-m pytest (-p conftest .*)$", read("Makefile"), re.MULTILINE)[1]
    assert options in read("CONTRIBUTING.md") and options in read(".github/workflows/ci.yml")
    sanitize = re.search(r"--nbval-sanitize-with=(\S+)", options)[1]
    assert (ROOT / sanitize).is_file()


def test_the_command_line_is_where_the_script_points(project):
    module, _, function = project["scripts"]["ldm-tutor"].partition(":")
    source = read(module.replace(".", "/") + ".py")
    assert re.search(rf"^def {function}\(", source, re.MULTILINE)


# --- the documents


def test_readme_lists_every_lesson():
    readme = read("README.md")
    rows = {row[0]: row[1] for row in re.findall(r"^\| \[?(\d\d_\w+)[^|]*\| [^|]+\| ([^|]+) \|$", readme, re.MULTILINE)}
    assert [int(name[:2]) for name in rows] == list(range(17))
    there = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert there <= set(rows)
    for name, minutes in rows.items():
        assert (f"[{name}](notebooks/{name}.ipynb)" in readme) == (name in there), name
        assert (minutes == "coming") == (name not in there), name


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/training.md"])
def test_links_between_documents_lead_somewhere(name):
    links = re.findall(r"\]\(([^)#]+)", read(name))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (ROOT / name).parent.joinpath(link).exists()] == []


def test_documents_name_targets_that_exist():
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), re.MULTILINE))
    for name in ("README.md", "CONTRIBUTING.md"):
        commands = set(re.findall(r"(?:^|`)make ([a-z]+)", read(name), re.MULTILINE))
        assert "test" in commands and commands <= targets, name


def test_no_file_holds_a_home_path_or_a_registry():
    files = text_files()
    assert len(files) > 40
    found = []
    for path in files:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if HOME_PATH.search(line) or any(word in line for word in REGISTRY_HOSTS + INDEX_OPTIONS):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    assert found == []


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("/" + "home/ada/course", True),
        ("cd /" + "work/main", True),
        ("'/" + "root/.cache'", True),
        ("C:\\" + "Users\\ada", True),
        ("~/course", False),
        ("example.org/" + "home/page", False),
        ("$OUT/" + "work/x", False),
    ],
)
def test_a_home_path_is_recognised(text, is_one):
    assert bool(HOME_PATH.search(text)) == is_one


def test_text_files_end_lines_the_same_way():
    assert "* text=auto eol=lf" in read(".gitattributes").splitlines()
    assert [str(path.relative_to(ROOT)) for path in text_files() if b"\r\n" in path.read_bytes()] == []


# --- what the tests themselves stand on


def test_the_network_is_off():
    with pytest.raises(RuntimeError, match=r"192\.0\.2\.1"), socket.socket() as connection:
        connection.connect(("192.0.2.1", 80))
    with pytest.raises(RuntimeError, match=r"example\.org"):
        socket.create_connection(("example.org", 80), timeout=1)


def test_this_machine_still_answers():
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()[:2], timeout=5):
            pass


def test_a_kernel_starts_with_the_network_off(tmp_path):
    conftest = sys.modules["conftest"]
    conftest.write_kernel_profile(tmp_path)
    (script,) = tmp_path.rglob("00_no_network.py")
    code = f"exec(open({str(script)!r}).read()); import socket; socket.create_connection(('example.org', 80))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "NetworkBlockedError" in done.stderr


def test_annotations_are_checked():
    import torch
    from jaxtyping import TypeCheckError

    from ldm_tutor.nn.embeddings import timestep_embedding

    assert timestep_embedding(torch.zeros(2), 8).shape == (2, 8)
    with pytest.raises(TypeCheckError):
        timestep_embedding(torch.zeros(2, 4), 8)


def test_annotations_can_be_left_unchecked(unchecked_annotations):
    import torch

    from ldm_tutor.nn.embeddings import timestep_embedding

    assert timestep_embedding(torch.zeros(2, 4), 8).shape == (2, 1, 8)
