"""The README's table of lessons: it lists what exists, and its minutes come from a run or from the fact boxes."""

import pytest

from ldm_tutor.errors import ConfigError
from ldm_tutor.lessons import times
from ldm_tutor.lessons.build import NOTEBOOKS
from ldm_tutor.lessons.course import LESSONS
from ldm_tutor.lessons.times import END, README, START, complaints, main, measured_seconds, replaced, stated, table

CASES = [("notebooks.00_start_here.ipynb", 50), ("notebooks.00_start_here.ipynb", 20.5), ("notebooks.03_clip.ipynb", 7)]


@pytest.fixture
def results(tmp_path):
    """A JUnit file as nbval's run writes it, with a test of another kind among its cells."""
    cases = [*CASES, ("tests.test_times", 1)]
    lines = [f'<testcase classname="{name}" name="Cell {k}" time="{took}"/>' for k, (name, took) in enumerate(cases)]
    path = tmp_path / "notebooks.xml"
    path.write_text(f"<testsuites><testsuite>{''.join(lines)}</testsuite></testsuites>")
    return path


@pytest.fixture
def readme(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(f"# Course\n\n{START}\n{table({'00_start_here': 1, '04_forward_noising': 3})}\n{END}\n\nMore.\n")
    return path


def test_the_readme_lists_exactly_the_lessons_that_are_there():
    text = README.read_text(encoding="utf-8")
    told, there = stated(text), {path.stem for path in NOTEBOOKS.glob("*.ipynb")}
    assert set(told) == there, "python -m ldm_tutor.lessons.times --write"
    assert replaced(text, told) == text, "the table in the README is not the one of course.py"
    assert all(1 <= value <= 30 for value in told.values())


def test_seconds_of_the_cells_add_up(results):
    assert measured_seconds(results) == {"00_start_here": 70.5, "03_clip": 7.0}


def test_writing_keeps_what_was_not_measured(results, readme):
    assert main([str(results), "--readme", str(readme), "--write"]) == 0
    told = stated(readme.read_text())
    assert (told["00_start_here"], told["03_clip"], told["04_forward_noising"]) == (2, 1, 3)
    assert set(told) >= {each.stem for each in LESSONS if each.built}
    assert readme.read_text().startswith("# Course\n") and readme.read_text().endswith("\n\nMore.\n")


def test_writing_without_a_run_takes_the_fact_boxes(readme, tmp_path):
    assert main([str(tmp_path / "none.xml"), "--readme", str(readme), "--write"]) == 0
    told = stated(readme.read_text())
    assert told["04_forward_noising"] == 3 and told["03_clip"] == times.facts_minutes()["03_clip"]


def test_comparing(results, readme, caplog):
    caplog.set_level("INFO")
    assert main([str(results), "--readme", str(readme)]) == 1
    assert "03_clip: ran, and is not in the README's table" in caplog.text
    main([str(results), "--readme", str(readme), "--write"])
    assert main([str(results), "--readme", str(readme)]) == 0
    assert complaints({"00_start_here": 1}, {"00_start_here": 239}) == []
    assert complaints({"00_start_here": 1}, {"00_start_here": 301}) == [
        "00_start_here: took 5.0 minutes, the README says 1"
    ]


def test_bad_input_is_said(readme, tmp_path, caplog):
    empty, broken = tmp_path / "empty.xml", tmp_path / "broken.xml"
    empty.write_text("<testsuites/>")
    broken.write_text("no xml")
    for path in (empty, broken, tmp_path / "none.xml"):
        with pytest.raises(ConfigError, match="times:"):
            measured_seconds(path)
        assert main([str(path), "--readme", str(readme)]) == 1
    with pytest.raises(ConfigError, match="no table of lessons"):
        stated("# Course")
    assert "cannot be read" in caplog.text
