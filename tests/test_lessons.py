"""Every lesson as it lies in notebooks/: built from its source, run in order, readable, of a lesson's size and form."""

import re
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from browser_cells import SETUP
from prose_numbers import unsupported_numbers
from repeatable import not_repeatable, rebound_under_a_function

from ldm_tutor.lessons.build import NOTEBOOKS, SOURCES, WIDGET_VIEW, differences
from ldm_tutor.lessons.checks import EXERCISES
from ldm_tutor.lessons.course import LESSONS, find_lesson

MAX_CELL_LINES = 40
MAX_BYTES = 700_000
HEADINGS = ("Try first", "Exercises", "Recap", "Common mistakes", "Terms", "References", "Next stop")
CALLS = ("fact_box(", "course_map(")
TAGS = {"hide-input", "nbval-ignore-output", "nbval-skip", "raises-exception", "band"}


@dataclass(frozen=True)
class Bands:
    """Sizes of a lesson; another band than the usual one has a reason."""

    words: tuple[int, int] = (2400, 4000)
    code_lines: tuple[int, int] = (200, 350)
    figures: int = 12
    reason: str = ""


BANDS = {
    "00_start_here": Bands(
        words=(1800, 4000), code_lines=(120, 350), figures=8, reason="it uses the model and builds no network yet"
    ),
    "02_sharp_reconstructions": Bands(code_lines=(200, 380), reason="five losses, a critic, and the step of both"),
    "03_clip": Bands(code_lines=(200, 380), reason="a tokenizer, two towers and a training are one story"),
    "09_prompt_editing": Bands(code_lines=(200, 380), reason="six edits, each with its pictures, and a real picture"),
    "05_unet_denoiser": Bands(code_lines=(200, 420), reason="a U-Net, its training and what it does are one story"),
    "10_other_conditions": Bands(code_lines=(200, 430), reason="two doors, and six things that come in by them"),
    "12_full_size_model": Bands(code_lines=(200, 400), reason="it takes every part of the package, forty imports"),
    "14_your_own_pictures": Bands(code_lines=(200, 400), reason="it takes a folder through every stage, fifty imports"),
}
PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))


# --- the rules: each takes a notebook and returns what is wrong with it


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook):
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def outputs(notebook):
    return [(cell, output) for cell in code_cells(notebook) for output in cell.outputs]


def not_run_in_order(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    return [] if counts and counts == list(range(1, len(counts) + 1)) else [f"execution counts are {counts}"]


def errors_and_warnings(notebook):
    found = []
    for cell, output in outputs(notebook):
        if output.output_type == "error" and "raises-exception" not in cell.metadata.get("tags", []):
            found.append(f"{cell.id}: {output.ename}: {output.evalue}")
        if output.get("name") == "stderr":
            found.append(f"{cell.id}: stderr: {output.text[:80]}")
    return found


def leftovers(notebook):
    found = [f"metadata.{name}" for name in notebook.metadata if name not in ("kernelspec", "language_info")]
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("the kernel is not python3")
    for cell in notebook.cells:
        found += [f"{cell.id}: {name}" for name in cell.metadata if name not in ("tags", "jupyter")]
    return found


def long_cells(notebook):
    lengths = {cell.id: len(cell.source.splitlines()) for cell in code_cells(notebook)}
    return [f"{name}: {length} lines" for name, length in lengths.items() if length > MAX_CELL_LINES]


def pictures_without_words(notebook):
    """An `<img>` without alt; a picture that is not in HTML; in the prose, `![](...)`."""
    found = []
    for cell, output in outputs(notebook):
        data = output.get("data", {})
        markup = data.get("text/html", "")
        tags = re.findall(r"<img\b[^>]*>", markup)
        if any(not re.search(r'\balt="[^"]*\w[^"]*"', tag) for tag in tags):
            found.append(f"{cell.id}: a picture with an empty alt")
        figure = data.get("text/plain", "").startswith("[figure] ")
        if (figure or any(kind.startswith("image/") for kind in data)) and not tags:
            found.append(f"{cell.id}: a picture without text/html")
        if "data:image/" in markup and not data.get("text/plain", "").startswith(("[figure] ", "[course map] ")):
            found.append(f"{cell.id}: a picture that does not come from show, live or frames")
    return found + [
        f"prose: {image}" for image in re.findall(r"!\[\s*\]\([^)]*\)|<img(?![^>]*\balt=)[^>]*>", prose(notebook))
    ]


def unstable_text(notebook):
    """Addresses, home folders and times in what nbval compares."""
    pattern = re.compile(r"0x[0-9a-f]{6,}|/(?:home|Users|root)/\w|\b\d+(?:\.\d+)? ?(?:ms|seconds)\b")
    found = []
    for cell, output in outputs(notebook):
        if {"nbval-ignore-output", "nbval-skip"} & set(cell.metadata.get("tags", [])):
            continue
        text = output.get("text", "") or output.get("data", {}).get("text/plain", "")
        if "text/html" in output.get("data", {}) and text.startswith("Lesson "):
            continue  # the box of facts
        if match := pattern.search(text):
            found.append(f"{cell.id}: {match[0]}")
    return found


def unknown_tags(notebook):
    """A tag that nothing reads is a slip of the pen: `nbval-ignore-outputs` would compare what it should not."""
    return [f"{cell.id}: {tag}" for cell in notebook.cells for tag in cell.metadata.get("tags", []) if tag not in TAGS]


def widgets_without_a_picture(notebook):
    """Whoever reads without a kernel sees a picture where a widget would be."""
    found = []
    for cell in code_cells(notebook):
        forms = [output.get("data", {}) for output in cell.outputs]
        pictures = [data for data in forms if re.search(r'<img[^>]*src="data:image/', data.get("text/html", ""))]
        if any(WIDGET_VIEW in data for data in forms) and not pictures:
            found.append(f"{cell.id}: a widget without a picture that stands still")
    return found


def missing_parts(notebook):
    headings = [line.lstrip("# ").lower() for line in prose(notebook).splitlines() if re.match(r"#+ ", line)]
    code = "\n".join(cell.source for cell in code_cells(notebook))
    found = [f"heading: {part}" for part in HEADINGS if not any(part.lower() in heading for heading in headings)]
    found += [f"call: {part[:-1]}" for part in CALLS if part not in code]
    if not re.match(r"# \S", prose(notebook)):
        found.append("a title in the first line")
    return found


def missing_exercises(notebook, slug):
    code = "\n".join(cell.source for cell in code_cells(notebook))
    names = [each.name for each in EXERCISES.values() if each.lesson == slug]
    few = [] if len(names) >= 4 else [f"{len(names)} exercises, a lesson has four to six"]
    return few + [name for name in names if f"check.{slug}.{name}(" not in code]


def count_words(notebook):
    text = re.sub(r"```.*?```|\$\$.*?\$\$|<[^>]+>|\]\([^)]*\)", " ", prose(notebook), flags=re.DOTALL)
    return len(re.findall(r"[A-Za-z][\w'-]*", text))


def count_code_lines(notebook):
    return sum(bool(line.strip()) for cell in code_cells(notebook) for line in cell.source.splitlines())


def count_figures(notebook):
    return sum(output.get("data", {}).get("text/html", "").count("<img") for _, output in outputs(notebook))


def out_of_bands(notebook, bands):
    found = []
    for name, count, (least, most) in (
        ("words", count_words(notebook), bands.words),
        ("code lines", count_code_lines(notebook), bands.code_lines),
        ("figures", count_figures(notebook), (bands.figures, 10**6)),
    ):
        if not least <= count <= most:
            found.append(f"{count} {name}, expected {least} to {most}")
    return found


def broken_links(notebook, folder):
    links = re.findall(r"\]\(([^)#\s]+)", prose(notebook))
    local = [link for link in links if "://" not in link and not link.startswith("attachment:")]
    coming = {f"{lesson.stem}.ipynb" for lesson in LESSONS}
    return [link for link in local if link not in coming and not (folder / link).exists()]


RULES = (
    not_run_in_order,
    errors_and_warnings,
    leftovers,
    long_cells,
    pictures_without_words,
    unstable_text,
    unknown_tags,
    widgets_without_a_picture,
    unsupported_numbers,
    missing_parts,
    not_repeatable,
    rebound_under_a_function,
)


# --- the lessons


@pytest.fixture(scope="module", params=PATHS, ids=lambda path: path.stem)
def lesson(request):
    return request.param, nbformat.read(request.param, as_version=4)


def test_there_are_lessons():
    assert PATHS, f"no notebook in {NOTEBOOKS.name}/: write docs/lessons/NN_slug.py, then build it (CONTRIBUTING.md)"
    sources = {path.stem for path in SOURCES.glob("*.py")}
    built = {each.stem for each in LESSONS if each.built}
    assert {path.stem for path in PATHS} == sources == built


def test_notebook_is_its_source(lesson):
    path, notebook = lesson
    nbformat.validate(notebook)
    assert differences(SOURCES / f"{path.stem}.py", path) == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule(lesson, rule):
    assert rule(lesson[1]) == []


def test_size(lesson):
    path, notebook = lesson
    assert path.stat().st_size <= MAX_BYTES
    assert out_of_bands(notebook, BANDS.get(path.stem, Bands())) == []


def test_exercises_and_links(lesson):
    path, notebook = lesson
    assert missing_exercises(notebook, find_lesson(path.stem).slug) == []
    assert broken_links(notebook, path.parent) == []


def test_every_widget_of_a_lesson_is_used_in_the_browser_tests():
    imported = re.compile(r"^from ldm_tutor\.widgets\.(\w+) import", re.MULTILINE)
    wanted = {name for path in SOURCES.glob("*.py") for name in imported.findall(path.read_text(encoding="utf-8"))}
    tried = set(imported.findall(SETUP))
    assert wanted and wanted <= tried, "add it to CELLS and SETUP in tests/browser_cells.py, and use its controls"


def test_another_band_has_a_reason():
    assert all(bands.reason for bands in BANDS.values())
    assert set(BANDS) <= {each.stem for each in LESSONS}


# --- the rules themselves, on a notebook with planted faults


def small_notebook():
    image = {"text/plain": "[figure] a cat", "text/html": '<img alt="a cat" src="data:image/webp;base64,AA">'}
    cells = [
        nbformat.v4.new_markdown_cell("# A title\n\n" + "\n\n".join(f"## {part}\n\nSome words." for part in HEADINGS)),
        nbformat.v4.new_code_cell("fact_box(0)\ncourse_map(0)", execution_count=1),
        nbformat.v4.new_code_cell(
            "show(x)", execution_count=2, outputs=[nbformat.v4.new_output("display_data", data=image)]
        ),
    ]
    kernel = {"name": "python3", "display_name": "Python 3"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def run_out_of_order(notebook):
    notebook.cells[2].execution_count = 5


def fail_a_cell(notebook):
    notebook.cells[2].outputs.append(nbformat.v4.new_output("error", ename="ValueError", evalue="x", traceback=[]))


def warn(notebook):
    notebook.cells[2].outputs.append(nbformat.v4.new_output("stream", name="stderr", text="UserWarning"))


def keep_widget_state(notebook):
    notebook.metadata["widgets"] = {}


def use_another_kernel(notebook):
    notebook.metadata.kernelspec.name = "my-env"


def stretch_a_cell(notebook):
    notebook.cells[1].source += "\nx = 1" * 40


def drop_the_alt(notebook):
    notebook.cells[2].outputs[0].data["text/html"] = '<img alt="" src="data:">'


def drop_the_html(notebook):
    del notebook.cells[2].outputs[0].data["text/html"]


def use_a_bare_figure(notebook):
    notebook.cells[2].outputs[0].data["text/plain"] = "<Figure size 640x480 with 1 Axes>"


def put_a_bare_picture_in_the_prose(notebook):
    notebook.cells[0].source += "\n\n![](cat.png)"


def print_a_time(notebook):
    notebook.cells[2].outputs.append(nbformat.v4.new_output("stream", name="stdout", text="took 1.3 seconds"))


def print_an_address(notebook):
    notebook.cells[2].outputs.append(nbformat.v4.new_output("stream", name="stdout", text="<cat at 0x7f00aa11bb22>"))


def print_a_home_folder(notebook):
    notebook.cells[2].outputs.append(nbformat.v4.new_output("stream", name="stdout", text="/home/" + "me/runs"))


def misspell_a_tag(notebook):
    notebook.cells[2].metadata["tags"] = ["nbval-ignore-outputs"]


def show_a_bare_widget(notebook):
    view = {"text/plain": "Text()", WIDGET_VIEW: {"model_id": "1"}}
    notebook.cells[1].outputs.append(nbformat.v4.new_output("display_data", data=view))


def claim_a_share(notebook):
    notebook.cells[0].source += "\n\nIt follows 87% of the sentences."


def claim_a_value(notebook):
    notebook.cells[0].source += "\n\nThe loss falls to 0.137, see lesson 12 and 2021 (arXiv 2101.00001)."


def claim_a_large_number(notebook):
    notebook.cells[0].source += "\n\nThere are 12,345 pictures."


def quote_a_table_without_its_paper(notebook):
    notebook.cells[0].source += "\n\nOurs reaches 23.31 on the test set."


def work_only_once(notebook):
    notebook.cells[2].source += "\ncases = [case for case in cases if case]"


def change_a_name_under_a_function(notebook):
    notebook.cells[1].source += "\ncases = [1]\n\n\ndef count():\n    return len(cases)"
    notebook.cells[2].source += "\ncases = [2, 3]"


def drop_a_heading(notebook):
    notebook.cells[0].source = notebook.cells[0].source.replace("## Recap", "## Summary")


def drop_the_map(notebook):
    notebook.cells[1].source = "fact_box(0)"


FAULTS = (
    (run_out_of_order, not_run_in_order),
    (fail_a_cell, errors_and_warnings),
    (warn, errors_and_warnings),
    (keep_widget_state, leftovers),
    (use_another_kernel, leftovers),
    (stretch_a_cell, long_cells),
    (drop_the_alt, pictures_without_words),
    (drop_the_html, pictures_without_words),
    (use_a_bare_figure, pictures_without_words),
    (put_a_bare_picture_in_the_prose, pictures_without_words),
    (print_a_time, unstable_text),
    (print_an_address, unstable_text),
    (print_a_home_folder, unstable_text),
    (misspell_a_tag, unknown_tags),
    (show_a_bare_widget, widgets_without_a_picture),
    (claim_a_share, unsupported_numbers),
    (claim_a_value, unsupported_numbers),
    (claim_a_large_number, unsupported_numbers),
    (quote_a_table_without_its_paper, unsupported_numbers),
    (work_only_once, not_repeatable),
    (change_a_name_under_a_function, rebound_under_a_function),
    (drop_a_heading, missing_parts),
    (drop_the_map, missing_parts),
)


@pytest.mark.parametrize(("fault", "rule"), FAULTS, ids=lambda each: each.__name__)
def test_a_rule_finds_its_fault_and_no_other_does(fault, rule):
    notebook = small_notebook()
    assert [each.__name__ for each in RULES if each(notebook)] == []
    fault(notebook)
    assert [each.__name__ for each in RULES if each(notebook)] == [rule.__name__]


def test_the_counts():
    notebook = small_notebook()
    assert count_words(notebook) == 2 + sum(len(part.split()) for part in HEADINGS) + 2 * len(HEADINGS)
    assert count_code_lines(notebook) == 3 and count_figures(notebook) == 1
    assert len(out_of_bands(notebook, Bands())) == 3
    assert out_of_bands(notebook, Bands(words=(10, 40), code_lines=(3, 3), figures=1)) == []
    assert missing_exercises(notebook, "start_here")
    notebook.cells[0].source += "\n\n[a](nowhere.png) [b](01_autoencoder.ipynb) [c](https://example.org/x)"
    assert broken_links(notebook, Path(__file__).parent) == ["nowhere.png"]


@pytest.mark.parametrize(
    ("prose", "printed"),
    [
        ("It follows 87% of the sentences.", "followed: 0.8712"),
        ("It follows 87 per cent of them, and 3.1 times as many.", "87 % and 3.14"),
        ("There are 12,345 pictures.", "12345"),
        ("The loss ends at 0.14.", "loss 0.137"),
        ("Rombach et al. report an FID of 23.31 (table 2).", ""),
        ("Equation 12, tables 2 and 3.11, section 3.3, lesson 08, in 2021 (arXiv 2112.10752).", ""),
        ("The shape is `(1, 4, 333)`, and $s = 7.77$.", ""),
        ("Three cats, 12 dogs.", ""),
    ],
)
def test_a_number_with_something_behind_it_is_fine(prose, printed):
    notebook = small_notebook()
    notebook.cells[0].source += f"\n\n{prose}"
    notebook.cells[2].outputs.append(nbformat.v4.new_output("stream", name="stdout", text=printed))
    assert unsupported_numbers(notebook) == []


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("x = x + 1", ["x"]),
        ("x += 1", ["x"]),
        ("for k in x:\n    x = k", ["x"]),
        ("y = {'a': x}\nx = y", ["x"]),
        ("x = 1\nx += 1\ny = [x for x in range(x)]", []),
        ("def f(x):\n    y = x\n    y += 1\n\ny = f(3)", []),
        ("f = lambda y: y\ny = 2\nx[0] += y\nprint(y)", []),
    ],
)
def test_cells_that_work_only_once(source, names):
    notebook = small_notebook()
    notebook.cells[2].source = source
    assert [each.split(": ")[1] for each in not_repeatable(notebook)] == names


def test_one_number_too_few():
    notebook = small_notebook()
    notebook.cells[0].source += "\n\nIt follows 87% of 12,345 sentences and 0.5 of the rest."
    notebook.cells[2].outputs.append(nbformat.v4.new_output("stream", name="stdout", text="0.86 of 1,234"))
    assert [each.split(": ")[1].split(" in ")[0] for each in unsupported_numbers(notebook)] == ["87%", "12,345", "0.5"]
