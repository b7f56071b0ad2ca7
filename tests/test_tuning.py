"""What runs faster or in less memory computes the same."""

import copy
import dataclasses
import subprocess
import sys

import pytest
import torch
from test_parity import randomize
from torch.nn import functional as F

from ldm_tutor.config import AutoencoderConfig, UNetConfig
from ldm_tutor.errors import ConfigError
from ldm_tutor.models.autoencoder import Autoencoder
from ldm_tutor.models.tuning import channels_last_pays, in_tiles, one_by_one, tune
from ldm_tutor.models.unet import UNet
from ldm_tutor.nn import blocks
from ldm_tutor.nn.blocks import Upsample

UNET = UNetConfig(channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(1,), num_heads=2, context_dim=8)
PLAIN = dataclasses.replace(UNET, context_dim=None)
AUTOENCODER = AutoencoderConfig(channels=16, channel_mult=(1, 2), norm_groups=8)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def close(one, other, tolerance=1e-5):
    assert one.shape == other.shape
    assert (one - other).abs().max() / other.abs().max() <= tolerance


def test_channels_last_is_the_same_network():
    x, t, words = torch.randn(2, 4, 8, 16), torch.tensor([3, 981]), torch.randn(2, 5, 8)
    for config, rest in ((UNET, (t, words)), (PLAIN, (t,))):
        unet = randomize(UNet(config))
        before, weights = unet(x, *rest), {name: value.clone() for name, value in unet.state_dict().items()}
        assert tune(unet, channels_last=True) is unet
        assert unet.down[0].res_blocks[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
        close(unet(x, *rest), before)
        assert all(torch.equal(value, weights[name]) for name, value in unet.state_dict().items())
    ours = randomize(Autoencoder(AUTOENCODER))
    pictures, latents = torch.rand(1, 3, 16, 24) * 2 - 1, torch.randn(1, 4, 8, 6)
    before = ours.encode(pictures).mean, ours.decode(latents)
    tune(ours, channels_last=True)
    close(ours.encode(pictures).mean, before[0])
    close(ours.decode(latents), before[1])


def test_a_folded_doubling_is_the_same_layer_and_taken_only_where_it_pays(monkeypatch):
    taken = []
    transposed = F.conv_transpose2d
    monkeypatch.setattr(F, "conv_transpose2d", lambda x, *rest, **more: taken.append(x) or transposed(x, *rest, **more))
    layer, plain = (randomize(Upsample(12)) for _ in range(2))
    plain.load_state_dict(layer.state_dict())
    assert tune(layer, channels_last=False) is layer
    for height, width, folded in ((3, 4, False), (5, 7, True), (13, 1, True)):  # more positions than channels?
        x = torch.randn(2, 12, height, width)
        close(layer(x), plain(x), tolerance=1e-6)
        assert bool(taken) == folded
        taken.clear()
    tune(layer, folded=False)
    assert torch.equal(layer(x), plain(x)) and not taken
    with torch.enable_grad():
        for each in (tune(layer), plain):
            each(x).square().sum().backward()
    close(layer.conv.weight.grad, plain.conv.weight.grad, tolerance=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("strip", [1, 4 * 3 * 7 * 2 * 12, 10**9])  # a row at a time, three rows, all of it
def test_a_folded_doubling_goes_in_strips(monkeypatch, strip, layout):
    monkeypatch.setattr(blocks, "STRIP", strip)
    sides, transposed = [], F.conv_transpose2d
    monkeypatch.setattr(
        F, "conv_transpose2d", lambda x, *rest, **more: sides.append(x.shape[2]) or transposed(x, *rest, **more)
    )
    layer = tune(randomize(Upsample(12)), channels_last=layout is torch.channels_last)
    plain = tune(copy.deepcopy(layer), folded=False)
    x = torch.randn(2, 12, 8, 7).contiguous(memory_format=layout)
    close(layer(x), plain(x), tolerance=1e-6)
    assert layer(x).is_contiguous(memory_format=layout)
    wanted = {1: [2, 3, 3, 3, 3, 3, 3, 2], 10**9: [8]}.get(strip, [4, 5, 3])
    assert sides == 2 * wanted
    with torch.enable_grad():
        layer(x).square().sum().backward()
    assert sides[2 * len(wanted) :] == [8]  # gradients flow through one call


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_1x1_convolution_between_map_and_tokens(dtype):
    conv = randomize(torch.nn.Conv2d(6, 10, 1)).to(dtype)
    x = torch.randn(2, 6, 3, 5, dtype=dtype)
    wanted = conv.float()(x.float())
    conv.to(dtype)
    tokens = blocks.to_tokens(conv, x)
    close(tokens.float(), wanted.flatten(2).transpose(1, 2), tolerance=1e-6 if dtype == torch.float32 else 1e-2)
    made = blocks.to_map(conv, x.flatten(2).transpose(1, 2), (3, 5))
    close(made.float(), wanted, tolerance=1e-6 if dtype == torch.float32 else 1e-2)


def test_silu_is_in_place_only_without_gradients():
    x = torch.randn(5)
    kept, expected = x.clone(), F.silu(x)
    with torch.enable_grad():
        assert torch.equal(blocks.silu(x), expected) and torch.equal(x, kept)
    assert torch.equal(blocks.silu(x), expected) and torch.equal(x, expected)


def test_where_channels_last_pays_is_chosen_by_the_network():
    assert channels_last_pays(torch.nn.Linear(2, 2)) is False
    linear = torch.nn.Linear(2, 2)
    assert tune(linear) is linear
    assert not channels_last_pays(UNet(UNET)) and channels_last_pays(Autoencoder(AUTOENCODER))
    assert tune(Autoencoder(AUTOENCODER)).decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    unet = tune(UNet(UNET))
    chosen = unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert chosen == channels_last_pays(unet)


PROGRAM = """
import sys
import torch
from ldm_tutor.attention_maps.watch import watch
from ldm_tutor.config import UNetConfig
from ldm_tutor.errors import AttentionTapError
from ldm_tutor.models.tuning import tune
from ldm_tutor.models.unet import UNet

torch.set_num_threads(1)
torch.manual_seed(0)
config = UNetConfig(
    channels=32, channel_mult=(1,), num_res_blocks=1, attention_levels=(0,), num_heads=2, context_dim=8
)
unet = UNet(config).eval()
for value in unet.parameters():
    torch.nn.init.normal_(value, std=0.1 if value.ndim == 1 else value[0].numel() ** -0.5)
given = torch.randn(2, 4, 8, 8), torch.tensor([3, 981]), torch.randn(2, 5, 8)
with torch.no_grad():
    if sys.argv[1] == "explain":
        found = torch._dynamo.explain(unet)(*given)
        print(found.graph_count, found.graph_break_count)
        raise SystemExit
    before = unet(*given)
    tune(unet, channels_last=False, compiled=True)
    try:
        after = unet(*given)
    except (RuntimeError, OSError) as error:
        print("no compiler:", str(error).splitlines()[0])
        raise SystemExit
print(bool((after - before).abs().max() <= 1e-5 * before.abs().max()), bool(before.std() > 1e-3))
try:
    with watch(unet, lambda call, probs: None):
        print("watched")
except AttentionTapError as error:
    print("compiled" in str(error))
"""


def run_program(what):
    """In a process of its own, as users run it: the tests' checks of annotations would break the graph in pieces."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, what], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")


def test_the_unet_is_one_graph_for_the_compiler():
    assert run_program("explain")[0] == "1 0"  # one graph, no break


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_a_compiled_network_computes_the_same_and_refuses_to_be_watched():
    said = run_program("compile")
    if said[0].startswith("no compiler"):
        pytest.skip(said[0])
    assert said[:2] == ["True True", "True"]


def test_picture_by_picture_is_the_same():
    ours = randomize(Autoencoder(AUTOENCODER))
    latents = torch.randn(3, 4, 6, 8)
    close(one_by_one(ours.decode, latents), ours.decode(latents))


@pytest.mark.parametrize("shape", [(8, 8), (8, 20), (21, 8), (13, 30)])
def test_tiles_cover_the_picture_and_agree_where_nothing_is_global(shape):
    """A decoder that only repeats its latents sees no edges: its tiles give the very picture."""
    config = dataclasses.replace(AUTOENCODER, channel_mult=(1, 2, 2))
    latents = torch.randn(2, 3, *shape)
    asked = []

    def decode(z):
        asked.append(tuple(z.shape[2:]))
        return z.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)

    tiled = in_tiles(decode, latents, config, tile=8)
    assert tiled.shape == (2, 3, 4 * shape[0], 4 * shape[1])
    assert torch.allclose(tiled, decode(latents), atol=1e-6)
    assert max(max(side) for side in asked[:-1]) <= 8


def test_a_picture_of_one_tile_is_decoded_as_it_is():
    ours = randomize(Autoencoder(AUTOENCODER))
    latents = torch.randn(1, 4, 8, 8)
    assert torch.equal(in_tiles(ours.decode, latents, AUTOENCODER, tile=8), ours.decode(latents))
    with pytest.raises(ConfigError, match="4 or more"):
        in_tiles(ours.decode, latents, AUTOENCODER, tile=3)


def test_tiles_of_a_real_decoder_are_near_and_smooth():
    """Norms and attention see a tile instead of the picture, so it is near, not equal; no seam is a jump."""
    torch.manual_seed(0)
    ours = randomize(Autoencoder(dataclasses.replace(AUTOENCODER, mid_attention=False)))
    latents = torch.randn(1, 4, 16, 16)
    whole, tiled = ours.decode(latents), in_tiles(ours.decode, latents, AUTOENCODER, tile=12)
    assert 0 < (whole - tiled).abs().mean() < 0.3 * whole.abs().mean()
    steps = [(each[..., 1:] - each[..., :-1]).abs().mean(dim=(0, 1, 2)) for each in (whole, tiled)]
    assert steps[1].max() < 1.5 * steps[0].max()
