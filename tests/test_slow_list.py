"""The list of slow tests: what it names is marked, and a run renews it."""

from types import SimpleNamespace

from conftest import SLOW_LIST, is_listed, note_slow, pytest_itemcollected, read_slow_list


def test_a_test_is_listed_by_its_name_its_function_or_its_file():
    name = "tests/test_a.py::test_b[x[1]]"
    for entry in (name, "tests/test_a.py::test_b", "tests/test_a.py"):
        assert is_listed(name, {entry, "tests/other.py"})
    for entry in ("tests/test_a.py::test_", "tests/test_a", "test_a.py", "tests/test_a.py::test_b[y]"):
        assert not is_listed(name, {entry})


def test_a_run_renews_what_it_ran(tmp_path):
    path = tmp_path / "slow.txt"
    path.write_text("tests/a.py\ntests/b.py::test_x\ntests/c.py::test_y\n")
    note_slow({"tests/a.py::test_1": 9.0, "tests/a.py::test_2": 0.1, "tests/b.py::test_x[k]": 0.2}, path)
    assert read_slow_list(path) == {"tests/a.py::test_1", "tests/c.py::test_y"}
    assert read_slow_list(tmp_path / "none.txt") == set()


def test_what_the_list_names_is_there():
    entries = read_slow_list()
    files = {each.partition("::")[0] for each in entries}
    assert entries and [each for each in files if not (SLOW_LIST.parents[1] / each).is_file()] == []


def test_the_mark_reaches_the_tests():
    marks = []
    for name in (next(iter(read_slow_list())), "tests/test_slow_list.py::test_a"):
        item = SimpleNamespace(nodeid=name, add_marker=lambda mark, name=name: marks.append((name, mark)))
        pytest_itemcollected(item)
    assert [(name in read_slow_list(), mark.name) for name, mark in marks] == [(True, "slow")]
