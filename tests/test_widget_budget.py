"""Budgets: counted right without memory, and shown."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ldm_tutor.config import scenes
from ldm_tutor.errors import ConfigError
from ldm_tutor.nn.work import work_of
from ldm_tutor.widgets import budget as module
from ldm_tutor.widgets import names
from ldm_tutor.widgets.budget import BudgetExplorer, budget, budget_explorer, duration, gigabytes
from ldm_tutor.widgets.live import LiveFigure, make_control


def linear(rows, width):
    def make():
        layer = nn.Linear(width, width, bias=False)
        x = torch.empty(rows, width)
        return lambda: layer(x)

    return make


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_the_work_of_a_linear_layer_by_hand(dtype, size):
    work = work_of(linear(10, 64), dtype)
    assert work.multiply_adds == 10 * 64 * 64
    assert work.peak_bytes == size * 10 * 64  # the result; weights and input are not counted
    assert torch.get_default_dtype() == torch.float32


def test_what_is_freed_is_not_alive():
    def make():
        x = torch.empty(1000)

        def chain():
            y = x
            for _ in range(5):
                y = y + 1
            return y

        return chain

    work = work_of(make)
    assert work.multiply_adds == 0 and work.live_bytes == (4000, 8000, 8000, 8000, 8000)


def test_attention_is_counted_and_its_map_is_not_written_down():
    def make():
        q, k, v = (torch.empty(1, 4, 256, 32) for _ in range(3))
        return lambda: F.scaled_dot_product_attention(q, k, v)

    work = work_of(make)
    assert work.multiply_adds == 2 * 4 * 256 * 256 * 32
    assert work.peak_bytes < 4 * 4 * 256 * 256


def test_an_error_leaves_the_default_type_alone():
    with pytest.raises(ZeroDivisionError):
        work_of(lambda: 1 / 0, torch.bfloat16)
    assert torch.get_default_dtype() == torch.float32


def test_the_prediction_is_what_a_real_call_makes():
    """The same meter over a call with real numbers: fake tensors live and die as real ones."""
    from ldm_tutor.models.autoencoder import Autoencoder
    from ldm_tutor.nn.work import _Meter

    config = scenes()
    model, latents = Autoencoder(config.autoencoder), torch.randn(1, 4, 16, 16)
    with torch.no_grad(), _Meter() as meter:
        model.decode(latents)
    work = module.work_of_part("scenes", "autoencoder", 64, 64)
    assert work.peak_bytes == max(meter.live_bytes) > 0


def test_the_budget_of_scenes():
    found = budget("scenes", "float32", 64, 64)
    assert found.parameters["U-Net"] == 10_860_676
    assert found.weight_bytes["U-Net"] == 4 * 10_860_676
    assert found.peak_bytes == sum(found.weight_bytes.values()) + max(found.working_bytes.values())
    assert found.map_bytes == 2 * 4 * 4 * 64**2  # two rows, four heads, 8 x 8 positions
    half, four = budget("scenes", "bfloat16", 64, 64), budget("scenes", "float32", 64, 64, 4)
    assert 2 * sum(half.weight_bytes.values()) == sum(found.weight_bytes.values())
    assert four.multiply_adds["U-Net"] == 4 * found.multiply_adds["U-Net"]
    assert found.total_multiply_adds(10) - found.total_multiply_adds(9) == found.multiply_adds["U-Net"]


def test_half_the_numbers_take_half_the_memory():
    from ldm_tutor.models.unet import UNet

    def make():
        unet, latents, context = UNet(scenes().unet), torch.empty(1, 4, 16, 16), torch.empty(1, 32, 128)
        return lambda: unet(latents, torch.empty(1), context)

    counted = budget("scenes", "bfloat16", 64, 64).working_bytes["U-Net"]
    assert counted == pytest.approx(2 * work_of(make, torch.bfloat16).peak_bytes, rel=0.01)


@pytest.mark.slow
def test_the_budget_agrees_with_the_list_of_models():
    from ldm_tutor.cli.models import multiply_adds
    from ldm_tutor.config import sd_v1

    found = budget("SD v1")
    assert found.parameters == {"text encoder": 123_060_480, "U-Net": 859_520_964, "autoencoder": 83_653_863}
    assert found.multiply_adds["U-Net"] == multiply_adds(sd_v1().unet, (64, 64), 77, batch=2)
    large = budget("text2img 1.45B", "bfloat16", 256, 256)
    assert large.parameters["U-Net"] == 872_300_484 and large.parameters["text encoder"] == 542_895_360


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nobody",), "unknown model"),
        (("scenes", "float64"), "unknown numbers"),
        (("scenes", "float32", 50, 64), "multiples of 16"),
        (("scenes", "float32", 0, 64), "multiples of 16"),
        (("scenes", "float32", 64, 64, 0), "1 or more"),
        (("scenes", "float32", 64, 64, 1.5), "1 or more"),
    ],
)
def test_bad_input_is_said(arguments, words):
    with pytest.raises(ConfigError, match=words):
        budget(*arguments)


@pytest.mark.parametrize("rate", [0, -1.0, float("inf"), float("nan")])
def test_a_rate_is_a_positive_number(rate):
    with pytest.raises(ConfigError, match="above 0"):
        BudgetExplorer(rate)


def test_the_caption_says_what_the_figure_shows_and_follows_the_controls():
    explorer = BudgetExplorer(1e9)
    said = explorer.caption("scenes", "float32", 256, 1)
    for words in ("scenes, float32, 1 of 256 x 256", "12,041,787 parameters", "multiply-adds in 50 guided steps"):
        assert words in said
    controls = {"model": ["scenes"], "numbers": ["float32", "bfloat16"], "side": [64, 256], "batch": (1, 4, 1)}
    controls = {name: make_control(name, each) for name, each in controls.items()}
    figure = LiveFigure(explorer.draw, "a budget", explorer.caption, controls)
    before = figure.picture.value
    controls["batch"].value = 4
    controls["numbers"].value = "bfloat16"
    assert figure.picture.value != before and figure.problem.value == ""
    assert "scenes, bfloat16, 4 of 64 x 64" in figure.caption.value


def test_it_shows_itself_with_words_and_a_picture(monkeypatch):
    shown = []
    monkeypatch.setattr(names, "display", lambda bundle, raw: shown.append(bundle))
    budget_explorer(1e9, alt="a budget", model="scenes", side=256)
    assert shown[0]["text/plain"] == "[figure] a budget" and 'alt="a budget"' in shown[0]["text/html"]
    with pytest.raises(ConfigError, match="model"):
        budget_explorer(1e9, alt="a budget", model="nobody")
    with pytest.raises(ConfigError, match="side"):
        budget_explorer(1e9, alt="a budget", side=100)
    with pytest.raises(ConfigError, match="alternative text"):
        budget_explorer(1e9, alt=" ")


def test_units():
    assert gigabytes(5.14e9) == "5.1 GB" and gigabytes(2.5e6) == "2.5 MB"
    assert [duration(each) for each in (3, 300, 8000, 2e5)] == ["3.0 s", "5.0 minutes", "2.2 hours", "2.3 days"]
