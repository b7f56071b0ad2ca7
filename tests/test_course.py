"""The course as data, its map and its boxes, and the way from a lesson's source to its notebook."""

import base64
import dataclasses
import re
from xml.etree import ElementTree

import nbformat
import pytest

from ldm_tutor.errors import ConfigError, TutorError
from ldm_tutor.lessons import build as build_module
from ldm_tutor.lessons import course
from ldm_tutor.lessons.checks import EXERCISES
from ldm_tutor.lessons.course import LESSONS, course_map, fact_box, find_lesson, lesson_progress, map_svg
from ldm_tutor.lessons.progress import VARIABLE, record_pass

SOURCE = """# %% [markdown]
# # A title
#
# Some words.

# %% tags=["hide-input"]
import ipywidgets

values = [1, 2]

# %% tags=["nbval-ignore-output"]
print(object())
ipywidgets.IntSlider()

# %%
for value in values:
    print(value, flush=True)
values
"""


@pytest.fixture(autouse=True)
def own_progress(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "progress.json"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))


@pytest.fixture
def shown(monkeypatch):
    bundles = []
    monkeypatch.setattr(course, "display", lambda bundle, raw: bundles.append(bundle))
    return bundles


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "sources" / "00_start_here.py"
    path.parent.mkdir()
    path.write_text(SOURCE)
    return path


# --- the course


def test_seventeen_lessons_found_by_every_name():
    assert [lesson.number for lesson in LESSONS] == list(range(17))
    assert len({lesson.slug for lesson in LESSONS}) == 17
    for lesson in LESSONS:
        names = (lesson.number, str(lesson.number), f"{lesson.number:02d}", lesson.slug, lesson.stem)
        assert {find_lesson(name) for name in names} == {lesson}
    with pytest.raises(ConfigError, match="unknown lesson"):
        find_lesson(17)


def test_the_readme_asks_the_same_questions():
    readme = (build_module.ROOT / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| \[?(\d\d_\w+)[^|]*\| ([^|]+) \|", readme, re.MULTILINE))
    assert rows == {lesson.stem: lesson.question for lesson in LESSONS}


def test_the_fact_box_says_everything(shown, monkeypatch):
    fact_box(0)
    (bundle,) = shown
    facts = LESSONS[0].facts
    for text in (facts.goal, facts.needs, facts.builds, str(facts.minutes_to_read), str(facts.memory_mb)):
        assert text in bundle["text/plain"] and text in bundle["text/html"]
    assert bundle["text/html"].count('<th scope="row"') == 6
    monkeypatch.setattr(course, "LESSONS", (*LESSONS[:-1], dataclasses.replace(LESSONS[-1], facts=None)))
    with pytest.raises(ConfigError, match="not built"):
        fact_box(16)


def test_what_is_still_to_come_is_dashed_and_the_key_says_so(monkeypatch):
    assert "coming" not in map_svg(LESSONS[0]) and "stroke-dasharray" not in map_svg(LESSONS[0])
    monkeypatch.setattr(course, "LESSONS", (*LESSONS[:-1], dataclasses.replace(LESSONS[-1], facts=None)))
    assert "dashed: coming" in map_svg(LESSONS[0]) and "stroke-dasharray" in map_svg(LESSONS[0])


def drawing(svg):
    root = ElementTree.fromstring(svg)
    space = {"svg": "http://www.w3.org/2000/svg"}
    texts = [node.text for node in root.findall(".//svg:text", space)]
    return root.find("svg:title", space).text, texts, len(root.findall(".//svg:path", space))


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.stem)
def test_the_map_names_every_stop_and_yours(lesson):
    title, texts, ticks = drawing(map_svg(lesson))
    assert title.endswith(f"{lesson.number:02d}: {lesson.title}") and ticks == 0
    words = " ".join(texts)
    for other in LESSONS:
        assert f"{other.number:02d}" in texts and other.title in words
    assert map_svg(lesson) == map_svg(lesson)


def test_a_stop_is_ticked_when_all_its_exercises_are_passed(shown):
    mine = [each.address for each in EXERCISES.values() if each.lesson == "start_here"]
    for address in mine[:-1]:
        record_pass(address)
    assert lesson_progress(LESSONS[0]) == (len(mine) - 1, len(mine)) and drawing(map_svg(LESSONS[1]))[2] == 0
    course_map(1)
    record_pass(mine[-1])
    assert lesson_progress(LESSONS[0]) == (len(mine), len(mine)) and drawing(map_svg(LESSONS[1]))[2] == 1
    course_map(1)
    before, after = shown
    assert before["text/plain"] == after["text/plain"]
    assert f"{len(mine)} of {len(mine)} exercises passed" in after["text/html"]


def test_the_map_has_words_and_a_readable_picture(shown):
    course_map("start_here")
    markup = shown[0]["text/html"]
    assert "you are at stop 00, Start here" in re.search(r'<img alt="([^"]+)"', markup)[1]
    svg = base64.b64decode(re.search(r"base64,([^\"]+)", markup)[1]).decode()
    assert drawing(svg)[0] and 'fill="#FAFAF7"' in svg  # a light ground of its own
    assert markup.count("<li ") == len(LESSONS)
    assert markup.count("coming") == sum(not lesson.built for lesson in LESSONS)
    assert markup.count("(you are here)") == 1


# --- building


def test_reading_a_source(source):
    notebook = build_module.read_source(source)
    assert [cell.cell_type for cell in notebook.cells] == ["markdown", "code", "code", "code"]
    assert [cell.id for cell in notebook.cells] == [f"00_start_here-{k:03d}" for k in range(4)]
    assert notebook.cells[0].source == "# A title\n\nSome words."
    assert notebook.cells[1].metadata == {"tags": ["hide-input"]}


def test_building_twice_gives_the_same_bytes(source, tmp_path):
    target = tmp_path / "notebooks" / "00_start_here.ipynb"
    build_module.build(source, target)
    first = target.read_bytes()
    seconds, _ = build_module.build(source, target)
    assert seconds > 0
    assert target.read_bytes() == first
    notebook = nbformat.reads(first.decode(), as_version=4)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    printed, slider = notebook.cells[2].outputs
    assert printed.text == "<object object at 0x0>\n"
    assert slider.data[build_module.WIDGET_VIEW]["model_id"] == f"{1:032x}"
    assert notebook.cells[3].outputs[0].text == "1\n2\n"
    assert [cell.get("execution_count") for cell in notebook.cells] == [None, 1, 2, 3]
    assert build_module.differences(source, target) == []


def test_refreshing_runs_nothing_and_refuses_changed_code(source, tmp_path):
    target = tmp_path / "00_start_here.ipynb"
    build_module.build(source, target)
    before = nbformat.read(target, as_version=4)
    source.write_text(source.read_text().replace("Some words.", "Other words."))
    build_module.refresh(source, target)
    after = nbformat.read(target, as_version=4)
    assert after.cells[0].source == "# A title\n\nOther words."
    assert after.cells[1:] == before.cells[1:]
    source.write_text(source.read_text() + "\n# %%\nmore = 1\n")
    with pytest.raises(TutorError, match="build it without --refresh"):
        build_module.refresh(source, target)
    assert nbformat.read(target, as_version=4).cells == after.cells


def test_a_cell_that_fails_is_named_and_the_old_notebook_stays(source, tmp_path):
    target = tmp_path / "00_start_here.ipynb"
    target.write_text("old")
    source.write_text(SOURCE + "\n# %%\nvalues[9]\n")
    with pytest.raises(TutorError, match="00_start_here-004 stops: IndexError"):
        build_module.build(source, target)
    assert target.read_text() == "old"
    assert sorted(path.name for path in tmp_path.glob("00_*")) == ["00_start_here.ipynb"]


def test_differences_are_named(source, tmp_path):
    target = tmp_path / "00_start_here.ipynb"
    assert "missing, build it" in build_module.differences(source, target)[0]
    for change, said in (
        (lambda cells: cells[1].update(source="x"), "another source"),
        (lambda cells: cells[1].metadata.update(tags=[]), "another metadata"),
        (lambda cells: cells[1].update(id="x"), "another id"),
        (lambda cells: cells.pop(), "3 cells, the source has 4"),
    ):
        notebook = build_module.read_source(source)
        change(notebook.cells)
        nbformat.write(notebook, target)
        (problem,) = build_module.differences(source, target)
        assert said in problem


def test_the_command(source, tmp_path, caplog):
    folders = ["--sources", str(source.parent), "--notebooks", str(tmp_path)]
    assert build_module.main(["00", "--check", *folders]) == 1
    assert "missing" in caplog.text
    nbformat.write(build_module.read_source(source), tmp_path / "00_start_here.ipynb")
    assert build_module.main(["start_here", "--check", *folders]) == 0
    assert build_module.main(["07", *folders]) == 1
    assert "no such lesson" in caplog.text
    assert build_module.main(["--sources", str(tmp_path / "nothing")]) == 1
