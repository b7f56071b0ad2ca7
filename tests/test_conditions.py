"""Conditions: low-rank differences, encoders, tokens and channels, and one interface for all, at full size too."""

import dataclasses
import math
import random

import numpy as np
import pytest
import torch
from tiny import CONFIG, make_pipeline

from ldm_tutor.conditions.channels import (
    HOLE_FORMS,
    HoleForm,
    check_masks,
    clean_latents,
    hole_form,
    inpainting_channels,
    shrink_masks,
    small_picture_channels,
)
from ldm_tutor.conditions.given import Conditioned, Conditioning
from ldm_tutor.conditions.tiles import Tiled, tile_starts, tile_weight
from ldm_tutor.config import BertEncoderConfig, ClassEncoderConfig, ConditionConfig, SemanticEncoderConfig
from ldm_tutor.data.boxes import WHOLE, Box, BoxVocabulary, boxes_of, overlap, scene_boxes, tokenize_boxes
from ldm_tutor.data.degrade import Step, degrade, enlarge, random_steps, run_steps, shrink
from ldm_tutor.data.maps import LABELS, label_maps
from ldm_tutor.data.masks import background_mask, box_mask, free_form_mask, grown, random_box_mask
from ldm_tutor.data.scenes.datasets import render_scenes
from ldm_tutor.data.scenes.sampling import sample_scene
from ldm_tutor.data.scenes.world import BACKGROUNDS, KINDS
from ldm_tutor.errors import ConfigError, ShapeError, WeightsError
from ldm_tutor.models.autoencoder import Autoencoder
from ldm_tutor.models.bert_encoder import BertEncoder
from ldm_tutor.models.class_encoder import ClassEncoder
from ldm_tutor.models.condition import Condition, fingerprint, steered_config, steered_unet
from ldm_tutor.models.layout_encoder import LayoutEncoder, place_waves
from ldm_tutor.models.low_rank import Differences, LowRank, weight_shapes
from ldm_tutor.models.semantic_encoder import SemanticEncoder
from ldm_tutor.models.unet import UNet
from ldm_tutor.models.vector_quantizer import VQAutoencoder
from ldm_tutor.presets import PAPER_MODELS, sd_v1_inpainting
from ldm_tutor.sampling.guidance import Guided, guide
from ldm_tutor.training.conditions import condition_config
from ldm_tutor.weights.files import load_model, save_model

FULL = BoxVocabulary(names=tuple(f"class {i}" for i in range(600)), size=8192, max_boxes=30, crop=True)


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


def randomized(condition, seed=0):
    """Fill a condition with numbers, so that it does change what is drawn."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in condition.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return condition


# --- low-rank differences


@pytest.mark.parametrize("shape", [(6, 4), (8, 4, 3, 3), (8, 4, 1, 1)])
def test_a_difference_is_zero_at_the_start_and_then_of_its_rank(shape):
    part = LowRank(shape, rank=2)
    assert part().shape == shape
    assert not part().any()
    torch.nn.init.normal_(part.up)
    assert torch.linalg.matrix_rank(part().reshape(shape[0], -1)) == 2
    assert torch.equal(part(), (part.up @ part.down).view(shape))


def test_the_rank_is_at_most_what_the_weight_has():
    assert LowRank((3, 5), rank=100).down.shape == (3, 5)
    with pytest.raises(ConfigError, match="rank"):
        LowRank((3, 5), rank=0)


def test_merged_weights_give_what_two_branches_give():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(128, 5))
    shapes = weight_shapes(network)
    assert set(shapes) == {"0.weight", "2.weight"}
    differences = Differences(shapes, rank=2)
    for part in differences.parts.values():
        torch.nn.init.normal_(part.up)
    x = torch.randn(2, 3, 4, 4)
    merged = torch.func.functional_call(network, differences(dict(network.named_parameters())), (x,))
    first, last = differences.parts["0/weight"], differences.parts["2/weight"]
    down = torch.nn.functional.conv2d(x, first.down.view(-1, 3, 3, 3), padding=1)
    h = network[0](x) + torch.nn.functional.conv2d(down, first.up[:, :, None, None])
    branches = network[2](h.flatten(1)) + h.flatten(1) @ last.down.T @ last.up.T
    assert torch.allclose(merged, branches, atol=1e-5)


def test_a_difference_for_another_weight_is_refused():
    differences = Differences({"layer.weight": (4, 3)}, rank=1)
    with pytest.raises(ShapeError, match=r"layer\.weight"):
        differences({"layer.weight": torch.zeros(4, 2)})
    with pytest.raises(ShapeError, match=r"layer\.weight"):
        differences({"other.weight": torch.zeros(4, 3)})


# --- a condition beside its U-Net


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("kind", ["layout", "inpainting", "upscaling", "class", "semantic"])
def test_at_the_start_the_steered_unet_draws_as_the_plain_one(pipe, kind, rank):
    config = condition_config(kind, pipe.unet.config, rank)
    condition = Condition(config)
    condition.start_from(pipe.unet.state_dict())
    steered = steered_unet(condition, pipe.unet)
    assert steered.config.in_channels == 4 + config.extra_channels
    x, t, context = torch.randn(2, 4, 16, 16), torch.tensor([3, 700]), torch.randn(2, 5, 16)
    more = torch.randn(2, config.extra_channels, 16, 16)
    with torch.no_grad():
        assert torch.allclose(steered(torch.cat([x, more], dim=1), t, context), pipe.unet(x, t, context), atol=1e-5)


def test_a_condition_changes_the_unet_and_leaves_the_base(pipe):
    before = fingerprint(pipe.unet)
    condition = randomized(Condition(condition_config("inpainting", pipe.unet.config)))
    steered = steered_unet(condition, pipe.unet)
    assert fingerprint(pipe.unet) == before
    assert type(steered) is UNet and not steered.training
    x, t, context = torch.randn(1, 4, 16, 16), torch.tensor([300]), torch.randn(1, 5, 16)
    with torch.no_grad():
        plain = pipe.unet(x, t, context)
        holes = [steered(torch.cat([x, torch.full((1, 5, 16, 16), value)], dim=1), t, context) for value in (0.0, 1.0)]
    assert not torch.allclose(holes[0], plain, atol=1e-3)
    assert not torch.allclose(*holes, atol=1e-3)
    before = pipe.unet.conv_in.bias.clone()
    with torch.no_grad():
        steered.conv_in.bias.add_(1)
    assert torch.equal(pipe.unet.conv_in.bias, before)


def test_the_fingerprint_tells_unets_apart_and_survives_float16(pipe):
    other = make_pipeline(seed=1).unet
    assert fingerprint(other) != fingerprint(pipe.unet)
    stored = make_pipeline().unet.half().float()
    assert fingerprint(stored) == fingerprint(pipe.unet)


@pytest.mark.parametrize("kind", ["layout", "inpainting", "upscaling", "class", "semantic"])
@pytest.mark.parametrize("rank", [0, 2])
def test_a_condition_on_disk_is_the_same(tmp_path, pipe, kind, rank):
    config = condition_config(kind, pipe.unet.config, rank)
    assert ConditionConfig.from_dict(config.to_dict()) == config
    condition = randomized(Condition(config))
    path = save_model(tmp_path / "c.safetensors", condition, kind="condition", config=config)
    again = load_model(path, "condition")
    assert again.config == config
    for name, value in condition.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_what_is_stored_is_small():
    from ldm_tutor.config import scenes

    unet = scenes().unet
    sizes = {}
    for kind in ("layout", "inpainting", "upscaling", "class", "semantic"):
        with torch.device("meta"):
            sizes[kind] = sum(p.numel() for p in Condition(condition_config(kind, unet)).parameters())
    assert sum(sizes.values()) * 2 < 12e6  # bytes in float16
    assert max(sizes.values()) < 0.2 * 10_860_676


def test_bad_configurations_are_refused(pipe):
    with pytest.raises(ConfigError, match="kind"):
        ConditionConfig(kind="weather", unet=pipe.unet.config)
    with pytest.raises(ConfigError, match="rank"):
        ConditionConfig(kind="class", unet=pipe.unet.config, rank=-1)
    with pytest.raises(ConfigError, match="condition"):
        condition_config("weather", pipe.unet.config)


# --- one denoiser for tokens and channels


class Spy:
    """A U-Net that remembers what it was given and answers with what it can tell apart."""

    def __call__(self, x, t, context=None):
        self.x, self.t, self.context = x, t, context
        told = 0 if context is None else context.mean(dim=(1, 2))[:, None, None, None]
        return x[:, :4] + told + x[:, 4:].sum(dim=1, keepdim=True)


def test_guidance_with_tokens_and_channels():
    spy, x = Spy(), torch.randn(2, 4, 8, 8)
    given = Conditioning(torch.randn(2, 3, 6), torch.randn(2, 5, 8, 8))
    dropped = Conditioning(torch.zeros(1, 3, 6), torch.zeros(1, 5, 8, 8))
    eps = Conditioned(spy, given, dropped, 2.5)(x, 10, 0)
    assert spy.x.shape == (4, 9, 8, 8) and spy.context.shape == (4, 3, 6)
    assert torch.equal(spy.x[:, :4], torch.cat([x, x]))
    assert torch.equal(spy.x[2:, 4:], given.channels) and not spy.x[:2, 4:].any()
    expected = guide(x, Spy()(torch.cat([x, given.channels], 1), None, given.context), 2.5)
    assert torch.allclose(eps, expected, atol=1e-5)


def test_channels_that_are_not_dropped_stand_in_both_rows():
    spy, x = Spy(), torch.randn(2, 4, 8, 8)
    given = Conditioning(torch.randn(2, 3, 6), torch.randn(2, 5, 8, 8))
    Conditioned(spy, given, Conditioning(torch.zeros(1, 3, 6)), 2.0)(x, 10, 0)
    assert torch.equal(spy.x[:2, 4:], given.channels) and torch.equal(spy.x[2:, 4:], given.channels)


def test_without_guidance_the_unet_runs_once():
    spy, x = Spy(), torch.randn(2, 4, 8, 8)
    Conditioned(spy, Conditioning(channels=torch.randn(2, 3, 8, 8)))(x, 10, 0)
    assert spy.x.shape == (2, 7, 8, 8) and spy.context is None
    Conditioned(spy, Conditioning(channels=torch.randn(2, 3, 8, 8)), None, 4.0)(x, 10, 0)
    assert len(spy.x) == 2  # nothing is dropped, so there is nothing to guide by


def test_misfits_are_refused():
    context, channels = torch.zeros(2, 3, 6), torch.zeros(2, 5, 8, 8)
    with pytest.raises(ConfigError, match="nothing"):
        Conditioning()
    with pytest.raises(ConfigError, match="a context, channels, or both|one of them"):
        Guided(Spy(), None, None, 1.0)
    with pytest.raises(ShapeError, match="context and channels"):
        Guided(Spy(), context, None, 1.0, channels[:1].expand(3, -1, -1, -1))
    with pytest.raises(ShapeError, match="empty_channels"):
        Guided(Spy(), context, context, 2.0, channels, torch.zeros(1, 4, 8, 8))
    with pytest.raises(ConfigError, match="in both, or in neither"):
        Conditioned(Spy(), Conditioning(context), Conditioning(channels=channels), 2.0)
    with pytest.raises(ShapeError, match="side of the channels"):
        Conditioned(Spy(), Conditioning(context, channels))(torch.zeros(2, 4, 4, 4), 5, 0)
    with pytest.raises(ShapeError, match="with_tokens"):
        Conditioning(context).with_tokens(torch.zeros(2, 3, 7))
    assert Conditioning(context).with_tokens(torch.ones(2, 4, 6)).context.shape == (2, 7, 6)
    assert Conditioning(channels=channels).with_tokens(torch.ones(2, 4, 6)).context.shape == (2, 4, 6)


# --- tiles


@pytest.mark.parametrize(
    ("length", "tile", "stride"), [(16, 16, 8), (17, 16, 8), (40, 16, 8), (33, 16, 16), (9, 16, 4)]
)
def test_tiles_cover_everything(length, tile, stride):
    starts = tile_starts(length, tile, stride)
    covered = {place for start in starts for place in range(start, min(length, start + tile))}
    assert covered == set(range(length))
    assert starts[-1] + tile == length or length <= tile


def test_tiles_weigh_most_in_the_middle_and_never_nothing():
    weight = tile_weight(8)
    assert weight.min() > 0 and weight[3, 3] == weight.max()
    assert torch.equal(weight, weight.flip(0)) and torch.equal(weight, weight.T)


def test_a_tiled_pointwise_denoiser_is_the_denoiser():
    x, given = torch.randn(2, 4, 20, 31), Conditioning(torch.randn(2, 3, 6), torch.randn(2, 3, 20, 31))
    whole = Conditioned(Spy(), given, Conditioning(torch.zeros(1, 3, 6), torch.zeros(1, 3, 20, 31)), 1.7)
    assert torch.allclose(Tiled(whole, 16)(x, 5, 0), whole(x, 5, 0), atol=1e-5)
    with pytest.raises(ConfigError, match="channels"):
        Tiled(Guided(Spy(), torch.zeros(1, 2, 6), None, 1.0), 16)


# --- boxes


def test_tokens_at_full_size_are_the_published_ones():
    assert (FULL.grid, FULL.none, FULL.length) == (90, 8191, 92)
    boxes = [Box("class 7", 0.1, 0.25, 0.6, 0.9), Box("class 599", 0.0, 0.0, 1.0, 1.0)]
    (row,) = tokenize_boxes([boxes], FULL).tolist()
    assert row[:3] == [7, round(0.25 * 89) * 90 + round(0.1 * 89), round(0.9 * 89) * 90 + round(0.6 * 89)]
    assert row[3:6] == [599, 0, 89 * 90 + 89]
    assert row[6:90] == [8191] * 84
    assert row[90:] == [0, 89 * 90 + 89]  # the crop: all of the picture
    crop = tokenize_boxes([boxes], FULL, crops=[(0.5, 0.0, 1.0, 0.5)])[0, 90:].tolist()
    assert crop == [FULL.place(0.5, 0), FULL.place(1, 0.5)]


def test_ours_is_the_same_function_on_a_grid_of_32():
    layout = scene_boxes(sample_scene(1))
    tokens = tokenize_boxes([layout, []])
    assert tokens.shape == (2, 9) and tokens.dtype == torch.long
    assert tokens[1].tolist() == [1024] * 9
    (again, nothing) = boxes_of(tokens)
    assert nothing == []
    assert [box.kind for box in again] == [box.kind for box in layout]
    for box, other in zip(layout, again, strict=True):
        assert np.allclose(box.rect, other.rect, atol=0.5 / 31 + 1e-9)


def test_boxes_of_is_the_way_back():
    for seed in range(20):
        tokens = tokenize_boxes([scene_boxes(sample_scene(seed, "three"))], shuffle=random.Random(seed))
        assert torch.equal(tokenize_boxes(boxes_of(tokens)), tokens)
    with pytest.raises(ShapeError, match="boxes_of"):
        boxes_of(torch.zeros(1, 8, dtype=torch.long))
    with pytest.raises(ConfigError, match="class"):
        boxes_of(torch.tensor([[9, 33, 99, 1024, 1024, 1024, 1024, 1024, 1024]]))


def test_shuffling_changes_the_order_only():
    layout = [Box(kind, 0.1 * i, 0.1, 0.1 * i + 0.3, 0.6) for i, kind in enumerate(("cat", "dog", "car"))]
    made = [boxes_of(tokenize_boxes([layout], shuffle=random.Random(seed)))[0] for seed in range(30)]
    orders = {tuple(box.kind for box in boxes) for boxes in made}
    assert len(orders) == 6
    assert {frozenset(order) for order in orders} == {frozenset(("cat", "dog", "car"))}


@pytest.mark.parametrize(
    ("corners", "word"),
    [
        ((-0.1, 0, 0.5, 0.5), "x0"),
        ((0, 0, 1.2, 0.5), "x1"),
        ((0.5, 0, 0.4, 0.5), "x0 and x1"),
        ((0, 0.5, 0.5, 0.5), "y0 and y1"),
        ((0, 0, float("nan"), 1), "x1"),
        ((0, 0, float("inf"), 1), "x1"),
        (("0", 0, 1, 1), "x0"),
        ((True, 0, 1, 1), "x0"),
    ],
)
def test_a_bad_box_says_which_number(corners, word):
    with pytest.raises(ConfigError, match=word):
        Box("cat", *corners)


def test_bad_layouts_are_refused():
    box = Box("cat", 0.1, 0.1, 0.5, 0.5)
    with pytest.raises(ConfigError, match="at most 3"):
        tokenize_boxes([[box] * 4])
    with pytest.raises(ConfigError, match="cow"):
        tokenize_boxes([[Box("cow", 0.1, 0.1, 0.5, 0.5)]])
    with pytest.raises(ConfigError, match="too small"):
        tokenize_boxes([[Box("cat", 0.1, 0.1, 0.101, 0.5)]])
    with pytest.raises(ConfigError, match="list of boxes per picture"):
        tokenize_boxes([box])
    with pytest.raises(ConfigError, match="crop"):
        tokenize_boxes([[box]], crops=[WHOLE])
    with pytest.raises(ConfigError, match="kind"):
        Box("", 0, 0, 1, 1)


def test_overlap():
    assert overlap((0, 0, 1, 1), (0, 0, 1, 1)) == 1
    assert overlap((0, 0, 0.5, 1), (0.5, 0, 1, 1)) == 0
    assert overlap((0, 0, 2, 1), (1, 0, 3, 1)) == pytest.approx(1 / 3)


# --- encoders


def test_neighbouring_places_start_alike():
    encoder = LayoutEncoder(BertEncoderConfig(vocab_size=1025, context_length=9, width=32, num_layers=1, num_heads=2))
    table = encoder.token_embedding.weight
    here, beside, far = (table[20 * 32 + column] for column in (10, 11, 25))
    assert (here - beside).norm() < 0.5 * (here - far).norm()
    assert encoder(torch.randint(1025, (2, 9))).shape == (2, 9, 32)
    assert isinstance(encoder, BertEncoder)
    waves = place_waves(32, 32)
    assert waves.shape == (1024, 32) and torch.unique(waves, dim=0).shape == waves.shape  # no two places alike
    assert 0.5 < waves.std() < 1.5
    assert place_waves(5, 6).shape == (25, 6)


def test_the_semantic_encoder_is_two_halvings_and_a_mix():
    full = SemanticEncoder(SemanticEncoderConfig())
    assert sum(p.numel() for p in full.parameters()) == 182 * 3  # no bias
    labels = torch.randint(182, (2, 64, 64))
    out = full(labels)
    assert out.shape == (2, 3, 16, 16)
    hot = torch.nn.functional.one_hot(labels, 182).permute(0, 3, 1, 2).float()
    for _ in range(2):
        hot = torch.nn.functional.avg_pool2d(hot, 2)  # what bilinear halving is
    assert torch.allclose(out, torch.einsum("bchw,oc->bohw", hot, full.mix.weight[:, :, 0, 0]), atol=1e-5)
    with pytest.raises(ConfigError, match="0 to 181"):
        full(torch.full((1, 8, 8), 182))


# --- channels


def checkered(pictures):
    masks = torch.zeros(len(pictures), 1, *pictures.shape[-2:])
    masks[..., : pictures.shape[-2] // 2, :] = 1
    return masks


def test_the_order_and_range_of_every_form(pipe):
    pictures = torch.rand(2, 3, 64, 64) * 2 - 1
    masks = checkered(pictures)
    latents = {}
    for name, at, low in (("scenes", 0, 0.0), ("sd", 0, 0.0), ("ldm", -1, -1.0)):
        channels = inpainting_channels(pipe.autoencoder, pictures, masks, name)
        assert channels.shape == (2, 5, 16, 16)
        mask = channels[:, at]
        assert (mask[:, :8] == 1).all() and (mask[:, 8:] == low).all()
        latents[name] = channels[:, 1:] if at == 0 else channels[:, :-1]
        hidden = torch.where(masks > 0.5, torch.tensor(HOLE_FORMS[name].fill), pictures)
        assert torch.allclose(latents[name], clean_latents(pipe.autoencoder, hidden), atol=1e-6)
    assert torch.equal(latents["scenes"], latents["sd"])
    assert not torch.allclose(latents["sd"], latents["ldm"])
    assert HOLE_FORMS["ldm"].fill == -1 and HOLE_FORMS["sd"].fill == 0


def test_masks_shrink_by_the_upper_left_pixel_or_by_any():
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 1, 1] = mask[..., 4, 0] = 1
    assert shrink_masks(mask, 4, HOLE_FORMS["scenes"]).flatten().tolist() == [1, 0, 1, 0]
    assert shrink_masks(mask, 4, HOLE_FORMS["sd"]).flatten().tolist() == [0, 0, 1, 0]
    assert shrink_masks(mask, 4, HOLE_FORMS["ldm"]).flatten().tolist() == [-1, -1, 1, -1]


def test_bad_masks_and_small_pictures_are_refused():
    pictures = torch.zeros(2, 3, 16, 16)
    for shape in ((2, 1, 8, 8), (1, 1, 16, 16), (2, 3, 16, 16), (2, 16, 16)):
        with pytest.raises(ShapeError, match="one mask"):
            check_masks(pictures, torch.zeros(shape))
    with pytest.raises(ConfigError, match="values"):
        check_masks(pictures, torch.full((2, 1, 16, 16), 0.5))
    with pytest.raises(ConfigError, match="values"):
        check_masks(pictures, torch.full((2, 1, 16, 16), float("nan")))
    check_masks(pictures, torch.ones(2, 1, 16, 16))
    with pytest.raises(ShapeError, match="small pictures"):
        small_picture_channels(torch.zeros(1, 3, 8, 8), (16, 16))
    with pytest.raises(ConfigError, match="pixel values"):
        small_picture_channels(torch.full((1, 3, 16, 16), 255.0), (16, 16))
    with pytest.raises(ConfigError, match="one of"):
        hole_form("mine")
    with pytest.raises(ConfigError, match="HoleForm"):
        HoleForm(("mask", "mask"), (0, 1), 0, "nearest")


# --- the same interface at full size, on thinner networks with the real channel counts


def thin(unet):
    return dataclasses.replace(unet, channels=32, num_heads=4, head_channels=None, norm_groups=8)


def thin_encoder(autoencoder, vq):
    slim = dataclasses.replace(autoencoder, channels=8, norm_groups=4)
    return (VQAutoencoder if vq else Autoencoder)(dataclasses.replace(slim, codebook_size=16) if vq else slim).eval()


def run(unet_config, given, dropped=None, scale=1.0):
    unet = UNet(thin(unet_config)).eval()
    side = 16
    x = torch.randn(1, unet_config.out_channels, side, side)
    with torch.no_grad():
        eps = Conditioned(unet, given, dropped, scale)(x, 500, 0)
    assert eps.shape == x.shape and eps.isfinite().all()


def test_layout_at_full_size():
    model = PAPER_MODELS["layout2img"]()
    encoder = LayoutEncoder(dataclasses.replace(model.condition, num_layers=1))
    layouts = [[Box("class 3", 0.1, 0.1, 0.4, 0.5)], []]
    context = encoder(tokenize_boxes(layouts, FULL))
    assert context.shape == (2, 92, 512)
    run(model.unet, Conditioning(context[:1]), Conditioning(context[1:]), 2.0)


@pytest.mark.parametrize("name", ["inpainting", "inpainting_big"])
def test_inpainting_of_the_paper(name):
    model = PAPER_MODELS[name]()
    assert model.unet.in_channels == 7
    autoencoder = thin_encoder(model.autoencoder, vq=True)
    pictures = torch.rand(1, 3, 64, 64) * 2 - 1
    channels = inpainting_channels(autoencoder, pictures, checkered(pictures), "ldm")
    assert channels.shape == (1, 4, 16, 16)
    assert set(channels[:, -1].unique().tolist()) == {-1.0, 1.0}
    run(model.unet, Conditioning(channels=channels))


def test_inpainting_of_stable_diffusion():
    model = sd_v1_inpainting()
    assert model.unet.in_channels == 9
    autoencoder = thin_encoder(model.autoencoder, vq=False)
    pictures = torch.rand(1, 3, 128, 128) * 2 - 1
    channels = inpainting_channels(autoencoder, pictures, checkered(pictures), "sd")
    assert channels.shape == (1, 5, 16, 16)
    hidden = torch.where(checkered(pictures) > 0.5, torch.zeros(()), pictures)
    with torch.no_grad():
        assert torch.allclose(channels[:, 1:], 0.18215 * autoencoder.encode(hidden).mode(), atol=1e-6)
    context = torch.randn(1, 77, 768)
    run(model.unet, Conditioning(context, channels), Conditioning(torch.zeros(1, 77, 768), channels), 7.5)


def test_super_resolution_at_full_size():
    model = PAPER_MODELS["bsr_sr"]()
    assert model.unet.in_channels == 6
    run(model.unet, Conditioning(channels=small_picture_channels(torch.rand(1, 3, 16, 16) * 2 - 1, (16, 16))))


def test_label_maps_at_full_size():
    model = PAPER_MODELS["semantic256"]()
    assert model.unet.in_channels == 6
    channels = SemanticEncoder(SemanticEncoderConfig())(torch.randint(182, (1, 64, 64)))
    run(model.unet, Conditioning(channels=channels.detach()), Conditioning(channels=torch.zeros(1, 3, 16, 16)), 1.5)


@pytest.mark.parametrize("name", ["cin256", "cin256_v2"])
def test_classes_at_full_size(name):
    model = PAPER_MODELS[name]()
    encoder = ClassEncoder(model.condition)
    assert isinstance(model.condition, ClassEncoderConfig)
    tokens = encoder(torch.tensor([207, model.condition.num_classes - 1])).detach()
    run(model.unet, Conditioning(tokens[:1]), Conditioning(tokens[1:]), 1.5)


# --- data: masks, maps, degradation


@pytest.mark.parametrize("make", [free_form_mask, random_box_mask])
def test_masks_are_zeros_and_ones_and_repeat(make):
    masks = torch.stack([make(64, random.Random(seed)) for seed in range(30)])
    assert masks.shape == (30, 1, 64, 64)
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(masks[3], make(64, random.Random(3))) and not torch.equal(masks[3], masks[4])
    shares = masks.mean(dim=(1, 2, 3))
    assert shares.min() > 0 and shares.max() < 0.8


def test_a_box_mask_covers_the_box():
    mask = box_mask(64, (0.25, 0.5, 0.5, 1.0))
    assert mask[0, 32:, 16:32].all() and mask.sum() == 32 * 16
    assert box_mask(64, (0.25, 0.5, 0.5, 1.0), margin=0.05).sum() > mask.sum()
    assert torch.equal(grown(mask, 0), mask)
    assert grown(mask, 1).sum() == 33 * 18
    for rect in ((0.5, 0, 0.5, 1), (0.5, 0, 0.4, 1)):
        with pytest.raises(ConfigError, match="x0 < x1"):
            box_mask(64, rect)


def test_background_masks_touch_no_object():
    scenes = render_scenes(20, "test", 0, with_masks=True)
    found = 0
    for number, foreground in enumerate(scenes.foreground):
        mask = background_mask(foreground, random.Random(number))
        if mask is not None:
            found += 1
            assert not (mask[0] * (grown((foreground > 0).float()[None], 1)[0])).any()
            assert mask.mean() >= 0.03
    assert found >= 15
    assert background_mask(torch.ones(64, 64), random.Random(0)) is None


def test_label_maps_name_what_is_there():
    scenes = render_scenes(8, "test", 0, with_masks=True)
    maps = label_maps(scenes.scenes, scenes.foreground)
    assert maps.dtype == torch.uint8 and len(LABELS) == len(BACKGROUNDS) + len(KINDS)
    for scene, front, labels in zip(scenes.scenes, scenes.foreground, maps, strict=True):
        assert {LABELS[i] for i in labels[front == 0].unique().tolist()} == {scene.background}
        for number, each in enumerate(scene.objects, start=1):
            assert {LABELS[i] for i in labels[front == number].unique().tolist()} == {each.kind}
    with pytest.raises(ShapeError, match="one foreground"):
        label_maps(scenes.scenes[:2], scenes.foreground)


def test_degrading_repeats_and_differs_by_seed():
    pictures = render_scenes(4, "test", 0).pictures
    small = degrade(pictures, 16, [0, 1, 2, 3])
    assert small.shape == (4, 3, 16, 16) and small.dtype == torch.uint8
    assert torch.equal(small, degrade(pictures, 16, [0, 1, 2, 3]))
    assert torch.equal(small[1:2], degrade(pictures[1:2], 16, [1]))
    assert not torch.equal(small, degrade(pictures, 16, [4, 5, 6, 7]))
    clean = shrink(pictures.float(), 4)
    error = (small.float() - clean).square().mean().sqrt()
    assert 2 < error < 60  # worse than clean, and still the same picture
    mixed = (small.float() - clean[[1, 2, 3, 0]]).square().mean().sqrt()
    assert error < mixed


def test_the_steps_of_a_degradation():
    counts = {}
    for seed in range(200):
        steps = random_steps(64, 16, random.Random(seed))
        names = [step.name for step in steps]
        assert names[-2:] == ["to", "jpeg"]
        assert names.count("blur") == 2 and names.count("noise") == 1 and names.count("to") == 2
        counts["half"] = counts.get("half", 0) + (names[0] == "resize" and steps[0].amount == 0.5)
        counts["jpeg"] = counts.get("jpeg", 0) + (names.count("jpeg") == 2)
        assert all(80 <= step.amount <= 95 for step in steps if step.name == "jpeg")
        assert all(1 <= step.amount <= 2 for step in steps if step.name == "noise")
    assert 30 <= counts["half"] <= 75 and 165 <= counts["jpeg"] <= 195
    picture = render_scenes(1, "test", 0).pictures[0].permute(1, 2, 0).numpy()
    assert np.array_equal(run_steps(picture, [], random.Random(0)), picture)
    with pytest.raises(ConfigError, match="sharpen"):
        run_steps(picture, [Step("sharpen", 1.0)], random.Random(0))


def test_bad_input_to_degrade():
    pictures = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    with pytest.raises(ShapeError, match="uint8"):
        degrade(pictures.float(), 16, [0, 1])
    with pytest.raises(ConfigError, match="one seed per picture"):
        degrade(pictures, 16, [0])
    with pytest.raises(ConfigError, match="side"):
        degrade(pictures, 64, [0, 1])
    with pytest.raises(ShapeError, match="multiples"):
        shrink(torch.zeros(1, 3, 10, 12), 4)


def test_bicubic_of_a_shrunk_gradient_is_near_it():
    ramp = torch.linspace(-0.9, 0.9, 64).expand(1, 3, 64, 64).contiguous()
    again = enlarge(shrink(ramp, 4), 4)
    assert again.shape == ramp.shape
    assert (again - ramp)[..., 4:-4].abs().max() < 0.02
    assert math.isclose(float(enlarge(torch.ones(1, 3, 4, 4), 4).max()), 1.0, abs_tol=1e-6)


def test_the_tiny_model_is_what_these_tests_think(pipe):
    assert steered_config(condition_config("upscaling", CONFIG.unet)).in_channels == 7
    with pytest.raises(WeightsError):
        load_model("nowhere.safetensors", "condition")
