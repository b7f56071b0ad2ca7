"""The house rules that the package's source has to keep: one-way imports, light imports, small honest files."""

import ast
import subprocess
import sys
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ldm_tutor"
FLOORS = {
    "errors": 0,
    "shapes": 0,
    "config": 0,
    "presets": 0,
    "schedule": 0,
    "nn": 1,
    "models": 2,
    "weights": 3,
    "sampling": 3,
    "conditions": 3,
    "attention_maps": 3,
    "losses": 3,
    "data": 4,
    "training": 4,
    "metrics": 4,
    "pipeline": 5,
    "open_model": 5,
    "steering": 5,
    "evaluation": 5,
    "evaluation_steering": 5,
    "plots": 5,
    "widgets": 5,
    "lessons": 5,
    "cli": 5,
}
HEAVY = ("matplotlib", "ipywidgets", "transformers", "torchvision", "diffusers", "lpips", "tensorboard")
MAX_LINES = 400
FEWEST_MODULES = 20  # fewer than this and the checks below would be looking at nothing


@dataclass(frozen=True)
class Import:
    """One import of a part of the package: which file and line, and which module."""

    source: str
    line: int
    target: str


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8"), filename=str(path)) for path in PATHS}
MODULES = {module_name(path) for path in PATHS}


def top_name(module):
    """`ldm_tutor.models.unet` -> `models`: the name that has a floor."""
    return module.split(".")[1]


def imports_of(tree, module, is_package, known):
    """Every import of `ldm_tutor` in `tree`, at whatever depth it stands; `known` tells a module from a name in one."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            children = [f"{base}.{alias.name}" for alias in node.names]
            names = [child if child in known else base for child in children]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names = [entry.value for entry in node.args[:1] if isinstance(entry, ast.Constant)]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "ldm_tutor":
                yield Import(source=module, line=node.lineno, target=name)


def find_cycle(graph):
    """One cycle of `graph` (name -> the names it imports), or None."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return " -> ".join(reversed(error.args[1]))
    return None


def upward(imports):
    return [
        f"{found.source}:{found.line} (floor {FLOORS[top_name(found.source)]}) imports {found.target} "
        f"(floor {FLOORS[top_name(found.target)]})"
        for found in imports
        if "." in found.source and "." in found.target
        if FLOORS[top_name(found.target)] > FLOORS[top_name(found.source)]
    ]


IMPORTS = [
    found
    for path, tree in TREES.items()
    for found in imports_of(tree, module_name(path), path.name == "__init__.py", MODULES)
]


def where(path, node):
    return f"{path.relative_to(ROOT)}:{node.lineno}"


def nodes(kind):
    return [(path, node) for path, tree in TREES.items() for node in ast.walk(tree) if isinstance(node, kind)]


def test_there_is_a_package_to_look_at():
    assert len(MODULES) >= FEWEST_MODULES
    assert len(IMPORTS) >= FEWEST_MODULES


def test_every_part_has_a_floor_and_every_floor_its_parts():
    assert {top_name(module) for module in MODULES if "." in module} == set(FLOORS)


def test_imports_go_down():
    assert upward(IMPORTS) == []


def test_every_import_names_a_module():
    unknown = [found for found in IMPORTS if found.target not in MODULES]
    assert unknown == []


def test_no_file_imports_itself_round_a_corner():
    graph = {module: set() for module in MODULES}
    for found in IMPORTS:
        graph[found.source].add(found.target)
    assert find_cycle(graph) is None


def test_the_parts_of_one_floor_have_an_order():
    graph = {name: set() for name in FLOORS}
    for found in IMPORTS:
        if "." in found.source and "." in found.target and top_name(found.source) != top_name(found.target):
            graph[top_name(found.source)].add(top_name(found.target))
    assert find_cycle(graph) is None


def test_the_import_reader_sees_every_form():
    known = {"ldm_tutor", "ldm_tutor.config", "ldm_tutor.models", "ldm_tutor.models.unet", "ldm_tutor.plots"}
    source = """
import ldm_tutor.plots
from ldm_tutor import config
from ldm_tutor.models import unet, nothing_known
from . import unet as same
from .unet import UNet
from ..config import Config
from ...elsewhere import thing
def late():
    import importlib, torch
    from ldm_tutor.plots import show
    importlib.import_module("ldm_tutor.models.unet")
"""
    found = [entry.target for entry in imports_of(ast.parse(source), "ldm_tutor.models.clip", False, known)]
    assert found == [
        "ldm_tutor.plots",
        "ldm_tutor.config",
        "ldm_tutor.models.unet",
        "ldm_tutor.models",
        "ldm_tutor.models.unet",
        "ldm_tutor.models.unet",
        "ldm_tutor.config",
        "ldm_tutor.plots",
        "ldm_tutor.models.unet",
    ]


def test_the_floor_check_refuses_the_way_up_and_a_circle():
    up = Import(source="ldm_tutor.nn.blocks", line=3, target="ldm_tutor.models.unet")
    level = Import(source="ldm_tutor.losses.kl", line=1, target="ldm_tutor.weights.files")
    assert upward([up, level]) == ["ldm_tutor.nn.blocks:3 (floor 1) imports ldm_tutor.models.unet (floor 2)"]
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) is not None
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


def test_init_files_define_nothing():
    full = []
    for path, tree in TREES.items():
        only_docstring = len(tree.body) == 1 and ast.get_docstring(tree) is not None
        if path.name == "__init__.py" and not only_docstring:
            full.append(str(path.relative_to(ROOT)))
    assert full == []


def test_every_folder_of_modules_is_a_package():
    assert [folder for folder in {path.parent for path in PATHS} if not (folder / "__init__.py").exists()] == []


@pytest.mark.parametrize("module", ["ldm_tutor", "ldm_tutor.models.unet", "ldm_tutor.pipeline"])
def test_importing_stays_light(module):
    code = f"import {module}, sys; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [], f"import {module} also loads these"


def test_no_file_is_long():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in PATHS}
    assert {name: num for name, num in lengths.items() if num > MAX_LINES} == {}


def test_only_the_command_line_prints():
    printing = [
        where(path, node)
        for path, node in nodes(ast.Call)
        if isinstance(node.func, ast.Name) and node.func.id == "print"
        if top_name(module_name(path)) != "cli"
    ]
    assert printing == []


def test_no_call_assumes_a_gpu():
    calls = [
        where(path, node)
        for path, node in nodes(ast.Call)
        if isinstance(node.func, ast.Attribute) and node.func.attr == "cuda"
    ]
    assert calls == []


def test_weights_are_loaded_strictly_and_safely():
    lax = []
    for path, node in nodes(ast.Call):
        name = ast.unparse(node.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if keywords.get("strict") == "False" and name not in ("zip", "map"):
            lax.append(f"{where(path, node)} strict=False")
        if name == "torch.load" and keywords.get("weights_only") != "True":
            lax.append(f"{where(path, node)} torch.load without weights_only=True")
    assert lax == []


def test_no_mutable_defaults():
    mutable = []
    for path, node in nodes((ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
        for default in [*node.args.defaults, *(entry for entry in node.args.kw_defaults if entry is not None)]:
            literal = isinstance(default, (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp))
            call = isinstance(default, ast.Call) and ast.unparse(default.func) in ("list", "dict", "set", "bytearray")
            if literal or call:
                mutable.append(where(path, default))
    assert mutable == []


def test_what_is_public_says_what_it_is():
    silent = []
    for path, tree in TREES.items():
        if ast.get_docstring(tree) is None:
            silent.append(str(path.relative_to(ROOT)))
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                overload = any(ast.unparse(each) == "overload" for each in node.decorator_list)
                if not node.name.startswith("_") and not overload and ast.get_docstring(node) is None:
                    silent.append(f"{where(path, node)} {node.name}")
    assert silent == []
