"""The bill explorer: every control counts, text and figure say the same as the bill, and it shows itself."""

import matplotlib.pyplot as plt
import pytest

from ldm_tutor.errors import ConfigError
from ldm_tutor.plots.figures import png_bytes
from ldm_tutor.training.bill import GPUS, bill, paper_runs
from ldm_tutor.widgets import bill as module
from ldm_tutor.widgets.bill import LATENTS, BillExplorer, bill_explorer

START = {"run": "CelebA-HQ, LDM-4", "gpu": "A100", "gpus": 8, "utilisation": 0.3, "latents": LATENTS[0]}
OTHER = {"run": "FFHQ, LDM-4", "gpu": "H100", "gpus": 64, "utilisation": 0.6, "latents": "cached"}


def test_the_caption_is_the_bill():
    text = BillExplorer().caption(**START)
    found = bill("CelebA-HQ, LDM-4", "A100", 0.3, 8)
    assert f"{found.gpu_days:,.1f} GPU-days, {found.wall_days:,.2f} days on the wall" in text
    assert f"{found.kilowatt_hours:,.0f} kWh" in text
    assert "its source names 14.4 V100-days, 12% of the peak" in text
    assert "5.5 GB in each GPU, 0.7 GB when sharded" in text
    assert "names no days" in BillExplorer().caption(**START | {"run": "text to image, 1.45B"})


@pytest.mark.parametrize("name", START)
def test_every_control_changes_text_and_figure(name):
    explorer = BillExplorer()
    changed = START | {name: OTHER[name]}
    assert explorer.caption(**changed) != explorer.caption(**START)
    assert png_bytes(explorer.draw(**changed)) != png_bytes(explorer.draw(**START))


def test_the_bars_are_the_days():
    figure = BillExplorer().draw(**START)
    widths = [patch.get_width() for patch in figure.axes[0].patches]
    assert widths == pytest.approx([bill(START["run"], gpu, 0.3).gpu_days for gpu in GPUS])
    heights = figure.axes[1].lines[0].get_ydata()
    assert heights[0] == pytest.approx(256 * heights[-1])
    plt.close(figure)


def test_it_shows_itself_with_every_choice(monkeypatch):
    shown = []
    monkeypatch.setattr(module.LiveFigure, "show", lambda self: shown.append(self))
    bill_explorer("The bill of a run.")
    assert len(shown) == 1
    for wrong in ("", " "):
        with pytest.raises(ConfigError, match="alternative text"):
            bill_explorer(wrong)
    with pytest.raises(ConfigError, match="latents; given: 'warm'"):
        BillExplorer().caption(**START | {"latents": "warm"})
    assert len(paper_runs()) == 5
