"""Shipping: what goes out is what was trained, halved, with its logs and sums; and nothing goes out half."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from ldm_tutor.errors import WeightsError
from ldm_tutor.training.options import OUTPUTS
from ldm_tutor.training.ship import ship
from ldm_tutor.weights.files import check_sums
from ldm_tutor.weights.shipped import shipped_folder

SHIPPED = shipped_folder()


@pytest.fixture
def run(tmp_path):
    """A training folder, as `train all` leaves it."""
    folder = tmp_path / "run"
    shutil.copytree(SHIPPED, folder)
    for log in (folder / "logs").iterdir():
        shutil.copy(log, folder / log.name)
    return folder


def test_a_finished_run_is_shipped_whole(run, tmp_path):
    (run / "NOTES.md").write_text("Made by hand.\n", encoding="utf-8")
    card = ship(run, tmp_path / "out").read_text(encoding="utf-8")
    assert "Made by hand." in card and card.count("\n| ") == 1 + len(OUTPUTS)
    assert {*OUTPUTS.values(), "MODEL_CARD.md"} <= set(check_sums(tmp_path / "out"))
    for name in OUTPUTS.values():  # they were halved before: nothing is lost
        ours, theirs = load_file(tmp_path / "out" / name), load_file(SHIPPED / name)
        assert ours.keys() == theirs.keys()
        assert all(tensor.dtype == torch.float16 and torch.equal(tensor, theirs[key]) for key, tensor in ours.items())


@pytest.mark.parametrize("name", ["unet.safetensors", "judge.csv", "tokenizer"])
def test_an_unfinished_run_writes_nothing(run, tmp_path, name):
    path = run / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(WeightsError, match=f"without {name}"):
        ship(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
