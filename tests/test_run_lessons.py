"""bench/run_lessons.py: it finds a cell that only works once, a warning, and says what memory a kernel took."""

import sys
from pathlib import Path

import nbformat
import pytest
from lab_browser import write_notebook

from ldm_tutor.errors import TutorError
from ldm_tutor.lessons.build import WIDGET_VIEW, build

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))
from run_lessons import main, run_lesson  # noqa: E402


@pytest.fixture
def folder(tmp_path):
    write_notebook(tmp_path / "00_fine.ipynb", "x = [1, 2]", "y = x[0] + 1", "big = bytearray(300_000_000)")
    write_notebook(tmp_path / "01_once.ipynb", "x = [1]", "y = x.pop()", "del x")
    write_notebook(tmp_path / "02_warns.ipynb", "import warnings\nwarnings.warn('old')")
    return tmp_path


def test_a_cell_that_works_once_is_found_when_run_twice(folder):
    assert run_lesson(folder / "01_once.ipynb")[2] == []
    _, _, problems = run_lesson(folder / "01_once.ipynb", twice=True)
    assert [each.split(": ")[1] for each in problems] == ["IndexError", "NameError"]
    assert " again: " in problems[0] and " again: " in problems[1]
    assert run_lesson(folder / "00_fine.ipynb", twice=True)[2] == []


def test_memory_and_warnings(folder, capsys):
    _, (kernel, _), problems = run_lesson(folder / "00_fine.ipynb")
    assert 0.3e9 < kernel < 1.5e9 and problems == []
    assert main(["--notebooks", str(folder), "00"]) == 0
    assert main(["--notebooks", str(folder), "00", "--limit", "0.1"]) == 1
    assert "the limit is 0.1" in capsys.readouterr().out
    assert main(["--notebooks", str(folder), "02"]) == 1
    assert "UserWarning: old" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--notebooks", str(folder), "77"])


def test_a_build_says_the_memory_and_stores_nothing_of_the_question(tmp_path):
    source = tmp_path / "00_start_here.py"
    source.write_text("# %% [markdown]\n# # A title\n\n# %%\nbig = bytearray(300_000_000)\nprint(len(big))\n")
    target = tmp_path / "00_start_here.ipynb"
    seconds, most = build(source, target)
    assert seconds > 0 and 0.3e9 < most < 1.5e9
    stored = nbformat.read(target, as_version=4)
    assert [cell.cell_type for cell in stored.cells] == ["markdown", "code"]
    assert stored.cells[1].outputs[0].text == "300000000\n" and "PEAK" not in target.read_text()
    source.write_text("# %%\nundefined\n")
    with pytest.raises(TutorError, match="NameError"):
        build(source, target)


def test_a_finished_curve_leaves_words_and_a_figure_and_no_dead_widget(tmp_path):
    source = tmp_path / "00_start_here.py"
    code = "from ldm_tutor.lessons.live_training import follow\n\nfollow(iter([2.0, 1.0]), 2, alt='It falls.');"
    source.write_text(f"# %%\n{code}")
    build(source, tmp_path / "00_start_here.ipynb")
    (cell,) = nbformat.read(tmp_path / "00_start_here.ipynb", as_version=4).cells
    live, figure = (output["data"] for output in cell.outputs)
    assert live["text/plain"].startswith("[live curve]") and WIDGET_VIEW not in live and "<p>" in live["text/html"]
    assert figure["text/plain"].startswith("[figure]")
