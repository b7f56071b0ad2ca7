"""Attention: the readable way equals the fast one, taps see and edit what they should, and leave no trace."""

import math

import pytest
import torch
from torch.nn import functional as F

from ldm_tutor.attention_maps.record import Recorder, resize_queries
from ldm_tutor.attention_maps.watch import chain, select_sites, watch
from ldm_tutor.config import UNetConfig
from ldm_tutor.errors import AttentionTapError, ConfigError
from ldm_tutor.models.unet import UNet
from ldm_tutor.nn import attention
from ldm_tutor.nn.attention import Attention, Call, CallInfo, Row, Site, attend, attention_probs, declare_call
from ldm_tutor.sampling.guidance import Guided
from ldm_tutor.sampling.loop import sample
from ldm_tutor.sampling.noise import PictureNoise
from ldm_tutor.schedule import NoiseSchedule

CONFIG = UNetConfig(
    channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_levels=(0, 1),
    num_heads=2,
    context_dim=16,
    norm_groups=8,
)
NUM_WORDS = 5
SITE = Site("up.0.block0.layer0.cross", "up", 0, "cross", 2)


@pytest.fixture(scope="module")
def unet():
    """A small U-Net whose every layer matters: random numbers also where training starts from zero."""
    model = UNet(CONFIG)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return model


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    return latents, torch.tensor([500.0, 20.0]), torch.randn(2, NUM_WORDS, 16, generator=generator)


def worst(a, b):
    return float((a.detach().double() - b.detach().double()).abs().max())


def taps(unet):
    return [layer.tap for _, layer in unet.attention_layers()]


def see_nothing(call, probs):
    return None


# One function, two ways


def by_the_book(q, k, v, mask=None):
    """Softmax attention written out row by row in float64."""
    q, k, v = q.double(), k.double(), v.double()
    out = torch.zeros(*q.shape[:-1], v.shape[-1], dtype=torch.float64)
    for i in range(q.shape[-2]):
        scores = (k @ q[..., i, :, None])[..., 0] / math.sqrt(q.shape[-1])
        if mask is not None:
            scores[..., ~mask[i]] = -torch.inf
        weights = torch.exp(scores - scores.amax(-1, keepdim=True))
        out[..., i, :] = ((weights / weights.sum(-1, keepdim=True))[..., None] * v).sum(-2)
    return out


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-6), (torch.float32, 2e-6), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize(
    ("b", "heads", "n", "m", "d"), [(1, 1, 1, 1, 1), (2, 3, 7, 7, 8), (2, 2, 16, 5, 4), (1, 4, 5, 77, 40)]
)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_eager_equals_fused_equals_the_book(b, heads, n, m, d, dtype, bound, masked, grad):
    q, k, v = (torch.randn(b, heads, length, d, dtype=dtype) for length in (n, m, m))
    mask = torch.rand(n, m) < 0.6 if masked else None
    if mask is not None:
        mask[:, 0] = True  # every query may look somewhere
    eager = attention_probs(q, k, mask).to(dtype) @ v
    fused = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    ours = attend(q.requires_grad_(grad), k, v, mask)
    book = by_the_book(q.detach(), k, v, mask)
    assert ours.dtype == dtype
    for way in (eager, fused, ours):
        assert worst(way, book) <= bound


def test_probs_are_float32_and_sum_to_one():
    q, k = torch.randn(2, 2, 6, 8, dtype=torch.bfloat16), torch.randn(2, 2, 9, 8, dtype=torch.bfloat16)
    mask = torch.zeros(6, 9, dtype=torch.bool)
    mask[:, :4] = True
    probs = attention_probs(q, k, mask)
    assert probs.dtype == torch.float32
    assert float((probs.sum(-1) - 1).abs().max()) < 1e-6
    assert float(probs[..., 4:].abs().max()) == 0


def test_gradients_of_both_ways_agree():
    q, k, v = (torch.randn(2, 2, 6, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    eager = torch.autograd.grad((attend(q, k, v) ** 2).sum(), (q, k, v))
    fused = torch.autograd.grad((F.scaled_dot_product_attention(q, k, v) ** 2).sum(), (q, k, v))
    assert max(worst(a, b) for a, b in zip(eager, fused, strict=True)) < 1e-5


@pytest.mark.parametrize("side, grad, fused", [(64, True, False), (128, True, True), (64, False, True)])
def test_the_way_is_chosen_by_size_and_gradient(monkeypatch, side, grad, fused):
    real, calls = F.scaled_dot_product_attention, []
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or real(*a, **k))
    q, k, v = (torch.randn(1, 2, side, 8, requires_grad=grad) for _ in range(3))
    out = attend(q, k, v)
    assert bool(calls) == fused
    plain = attention_probs(q, k) @ v
    assert worst(out, plain) < 1e-5
    if grad:
        pairs = zip(*(torch.autograd.grad((each**2).sum(), (q, k, v)) for each in (out, plain)), strict=True)
        assert max(worst(one, other) for one, other in pairs) < 1e-5


@pytest.mark.parametrize("piece", [1, 10, 40, 200, 2**20])
@pytest.mark.parametrize("masked", [False, True])
def test_bfloat16_without_gradients_goes_in_pieces(monkeypatch, piece, masked):
    def refused(*_, **__):
        raise AssertionError("the fused kernel was called")

    monkeypatch.setattr(attention, "PIECE", piece)
    q, k, v = (torch.randn(2, 3, length, 8, dtype=torch.bfloat16) for length in (11, 10, 10))
    mask = torch.rand(11, 10) < 0.6 if masked else None
    if mask is not None:
        mask[:, 0] = True
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    monkeypatch.setattr(F, "scaled_dot_product_attention", refused)
    ours = attend(q, k, v, mask)
    assert ours.dtype == torch.bfloat16
    assert worst(ours, expected) < 3e-2
    for row in (slice(i, i + 1) for i in range(11)):  # each goes to its own place
        alone = attend(q[:, :, row], k, v, None if mask is None else mask[row])
        assert worst(ours[:, :, row], alone) < 1e-2


@pytest.mark.parametrize("context_dim", [None, 24])
@pytest.mark.parametrize("qkv_bias", [False, True])
def test_module_with_and_without_a_tap(context_dim, qkv_bias):
    layer = Attention(dim=16, num_heads=4, context_dim=context_dim, qkv_bias=qkv_bias)
    layer.site = SITE
    x = torch.randn(2, 6, 16)
    context = None if context_dim is None else torch.randn(2, 9, context_dim)
    mask = None if context_dim else torch.ones(6, 6).tril().bool()
    with torch.no_grad():
        plain = layer(x, context, mask)
        layer.tap = lambda call, probs: probs.clone()
        edited = layer(x, context, mask, grid=(2, 3))
        layer.tap = lambda call, probs: torch.roll(probs, 1, dims=-1)
        mutant = layer(x, context, mask, grid=(2, 3))
    assert worst(plain, edited) < 1e-6
    assert worst(plain, mutant) > 1e-3


# Taps on a U-Net


@pytest.mark.parametrize("where", ["cross", "self", "all"])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_recording_is_bitwise_neutral(unet, inputs, where, mode):
    recorder = Recorder(heads="all")
    with mode():
        plain = unet(*inputs)
        with watch(unet, recorder, where) as sites:
            recorded = unet(*inputs)
        after = unet(*inputs)
    assert torch.equal(plain, recorded) and torch.equal(plain, after)
    assert [record.call.site for record in recorder.records] == list(sites)
    assert plain.std() > 1e-2


def test_recording_leaves_gradients_alone(unet, inputs):
    latents, t, context = inputs
    grads = []
    for tap in (None, Recorder()):
        sentence = context.clone().requires_grad_()
        if tap is None:
            out = unet(latents, t, sentence)
        else:
            with watch(unet, tap, "all"):
                out = unet(latents, t, sentence)
        grads += torch.autograd.grad(out.sum(), sentence)
    assert torch.equal(*grads) and float(grads[0].abs().max()) > 0
    assert all(not record.probs.requires_grad for record in tap.records)


@pytest.mark.parametrize("where", ["cross", "self", "all"])
def test_identity_edit_changes_nothing_and_a_real_one_does(unet, inputs, where):
    with torch.inference_mode():
        plain = unet(*inputs)
        with watch(unet, lambda call, probs: probs.clone(), where):
            identity = unet(*inputs)
        with watch(unet, lambda call, probs: torch.roll(probs, 1, dims=-1), where):
            rolled = unet(*inputs)
    scale = float(plain.abs().max())
    assert worst(plain, identity) <= 1e-6 * max(1, scale)
    assert worst(plain, rolled) > 1e-4 * scale


def test_a_tap_is_told_where_it_is(unet, inputs):
    calls = []
    with torch.inference_mode(), watch(unet, lambda call, probs: calls.append((call, probs.shape)), "all"):
        unet(*inputs)
    assert [call.site for call, _ in calls] == list(unet.sites())
    for call, (b, heads, n, m) in calls:
        side = 8 // 2**call.site.level
        assert call.grid == (side, side) and (b, heads, n) == (2, call.site.num_heads, side * side)
        assert m == (NUM_WORDS if call.site.kind == "cross" else n)
        assert call.info == CallInfo()
        assert call.site.name.startswith(call.site.stage) and call.site.name.endswith(call.site.kind)


def test_query_positions_are_in_row_major_order(unet):
    """Roll the feature map along its width, or its height: the map, unfolded as (h, w), rolls the same way."""
    features, context = torch.randn(1, 64, 3, 4), torch.randn(1, NUM_WORDS, 16)
    maps = []
    with (
        torch.inference_mode(),
        watch(unet, lambda call, probs: maps.append((call.grid, probs)), "mid.block0.layer0.cross"),
    ):
        for shifts in [(0, 0), (0, 1), (1, 0)]:
            unet.mid.transformers[0](features.roll(shifts, dims=(2, 3)), context)
    assert [grid for grid, _ in maps] == [(3, 4)] * 3
    start, right, down = (probs.mean(1).view(3, 4, NUM_WORDS) for _, probs in maps)
    assert worst(start.roll(1, dims=1), right) < 1e-5
    assert worst(start.roll(1, dims=0), down) < 1e-5
    assert worst(start, right) > 1e-3 and worst(start, down) > 1e-3


def test_all_layers_are_restored_after_an_error(unet, inputs):
    def breaks(call, probs):
        raise RuntimeError("in the tap")

    for where in ("cross", "all", "mid.block0.layer0.self"):
        with pytest.raises(RuntimeError, match="in the tap"), watch(unet, breaks, where):
            unet(*inputs)
        assert taps(unet) == [None] * len(unet.sites())
    with pytest.raises(KeyError), watch(unet, see_nothing, "all"):
        assert None not in taps(unet)
        raise KeyError("in the lesson")
    assert taps(unet) == [None] * len(unet.sites())


def test_where_chooses(unet):
    names = [site.name for site in unet.sites()]
    for where, expected in [
        ("all", names),
        ("cross", [name for name in names if name.endswith("cross")]),
        ("self", [name for name in names if name.endswith("self")]),
        (names[3], [names[3]]),
        ([names[5], names[2]], [names[2], names[5]]),
        (lambda site: site.stage == "up" and site.level == 0, [name for name in names if name.startswith("up.0")]),
    ]:
        with watch(unet, see_nothing, where) as sites:
            assert [site.name for site in sites] == expected
            watched = [site.name for site, layer in unet.attention_layers() if layer.tap is not None]
            assert watched == expected
    assert "mid.block0.layer0.cross" in names and len(set(names)) == len(names)


@pytest.mark.parametrize("where", ["nowhere", ["mid.block0.layer0.cross", "middle"], [], lambda site: False], ids=str)
def test_matching_nothing_lists_the_sites(unet, where):
    with pytest.raises(AttentionTapError) as caught, watch(unet, see_nothing, where):
        pass
    for site in unet.sites():
        assert site.name in str(caught.value)
    assert taps(unet) == [None] * len(unet.sites())


def test_nested_watches_keep_apart(unet):
    with watch(unet, see_nothing, "cross"):
        with pytest.raises(AttentionTapError, match="watched already.*chain"), watch(unet, Recorder(), "all"):
            pass
        with watch(unet, Recorder(), "self"):
            assert None not in taps(unet)
        held = [site.kind for site, layer in unet.attention_layers() if layer.tap is not None]
        assert set(held) == {"cross"}
    assert taps(unet) == [None] * len(unet.sites())


def test_chain_passes_edits_on(unet, inputs):
    recorder = Recorder(heads="all")
    double = chain(lambda call, probs: probs * 2, recorder, lambda call, probs: probs / 2)
    with torch.inference_mode():
        plain = unet(*inputs)
        with watch(unet, double, "mid.block0.layer0.cross"):
            edited = unet(*inputs)
        with watch(unet, chain(see_nothing, see_nothing), "all"):
            assert torch.equal(unet(*inputs), plain)
    assert worst(plain, edited) <= 1e-6 * float(plain.abs().max())
    assert float((recorder.records[0].probs.float().sum(-1) - 2).abs().max()) < 1e-2


def test_an_edit_of_another_shape_is_refused(unet, inputs):
    with torch.inference_mode(), pytest.raises(AttentionTapError) as caught:
        with watch(unet, lambda call, probs: probs[:, :1], "mid.block0.layer0.cross"):
            unet(*inputs)
    for word in ("mid.block0.layer0.cross", "(2, 1, 16, 5)", "(2, 2, 16, 5)"):
        assert word in str(caught.value)
    assert taps(unet) == [None] * len(unet.sites())


def test_compiled_and_foreign_models_are_refused(unet):
    with pytest.raises(AttentionTapError, match="compiled"), watch(torch.compile(unet), see_nothing):
        pass
    compiled_in_place = UNet(CONFIG)
    compiled_in_place.mid.compile()
    with pytest.raises(AttentionTapError, match="compiled.*'mid'"), watch(compiled_in_place, see_nothing):
        pass
    with pytest.raises(AttentionTapError, match="Linear"), watch(torch.nn.Linear(2, 2), see_nothing):
        pass


def test_a_tap_without_watch_is_refused():
    layer = Attention(dim=8, num_heads=2)
    layer.tap = see_nothing
    with pytest.raises(AttentionTapError, match="watch"):
        layer(torch.randn(1, 4, 8))


# Declarations


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_rows_declared_by_guidance_arrive(unet, scale):
    infos = []
    noise = PictureNoise([1, 2])
    context, empty = torch.randn(2, NUM_WORDS, 16), torch.randn(1, NUM_WORDS, 16)
    run = sample(Guided(unet, context, empty, scale), noise.initial((4, 8, 8)), NoiseSchedule(), num_steps=3)
    with torch.inference_mode(), watch(unet, lambda call, probs: infos.append((call.info, probs.shape[0])), "self"):
        ts = [state.t for state in run]
    conditional = (Row(0, True), Row(1, True))
    rows = conditional if scale == 1 else (Row(0, False), Row(1, False), *conditional)
    num_sites = len(infos) // 3
    assert infos == [(CallInfo(step, ts[step], rows), len(rows)) for step in range(3) for _ in range(num_sites)]


def test_declarations_nest_and_end_with_an_error(unet, inputs):
    seen = []
    with torch.inference_mode(), watch(unet, lambda call, probs: seen.append(call.info.step), "mid.block0.layer0.self"):
        with declare_call(CallInfo(step=1)):
            with pytest.raises(RuntimeError), declare_call(CallInfo(step=2)):
                unet(*inputs)
                raise RuntimeError
            unet(*inputs)
        unet(*inputs)
    assert seen == [2, 1, None]


# The recorder


def fake_call(info=None, site=SITE, grid=(2, 3)):
    return Call(site, grid, info or CallInfo())


def fake_probs(b=4, heads=2, n=6, m=NUM_WORDS, seed=0):
    return torch.randn(b, heads, n, m, generator=torch.Generator().manual_seed(seed)).softmax(-1)


GUIDED = CallInfo(3, 500, (Row(0, False), Row(1, False), Row(0, True), Row(1, True)))


def test_records_are_small_copies():
    probs = fake_probs()
    recorder = Recorder(heads="all")
    assert recorder(fake_call(), probs) is None
    [record] = recorder.records
    assert record.probs.dtype == torch.float16 and record.probs.device.type == "cpu"
    assert torch.equal(record.probs, probs.half())
    assert record.grid == (2, 3) and record.rows == () and recorder.num_bytes == 4 * 2 * 6 * 5 * 2
    half = fake_probs().half()
    recorder(fake_call(), half)
    half.zero_()
    assert float(recorder.records[1].probs.sum()) > 0


def test_recorder_keeps_what_it_is_asked_for():
    probs = fake_probs()
    recorder = Recorder(tokens=[3, 1])
    recorder(fake_call(GUIDED), probs)
    [record] = recorder.records
    assert torch.equal(record.probs, probs[2:].mean(1, keepdim=True)[..., [3, 1]].half())
    assert record.rows == GUIDED.rows[2:]

    everything = Recorder(only_conditional=False, heads="all")
    everything(fake_call(GUIDED), probs)
    assert everything.records[0].rows == GUIDED.rows and everything.records[0].probs.shape == probs.shape

    recorder(fake_call(CallInfo(rows=(Row(0, False),) * 4)), probs)  # no row sees its sentence: nothing to keep
    assert len(recorder.records) == 1

    own = Site("mid.block0.layer0.self", "mid", 1, "self", 2)
    recorder(fake_call(site=own), fake_probs(m=6))  # tokens are words: self-attention keeps all its keys
    assert recorder.records[1].probs.shape == (4, 1, 6, 6)


def test_recorder_refuses():
    with pytest.raises(AttentionTapError, match="4 rows"):
        Recorder()(fake_call(CallInfo(rows=(Row(0, True),))), fake_probs())
    with pytest.raises(AttentionTapError, match="up.0.block0.layer0.cross.*token"):
        Recorder(tokens=[NUM_WORDS])(fake_call(), fake_probs())
    for settings in ({"heads": "sum"}, {"tokens": []}, {"tokens": [1, 1]}, {"tokens": [-1]}, {"grid": (0, 4)}):
        with pytest.raises(ConfigError, match="Recorder"):
            Recorder(**settings)


def test_resizing_a_grid_keeps_the_sums():
    probs = fake_probs(n=16)
    for target in [(2, 2), (8, 8), (3, 5), (4, 4)]:
        resized = resize_queries(probs, (4, 4), target)
        assert resized.shape == (4, 2, math.prod(target), NUM_WORDS)
        assert float((resized.sum(-1) - 1).abs().max()) < 1e-5
    assert resize_queries(probs, (4, 4), (4, 4)) is probs
    ramp = torch.arange(16.0).view(1, 1, 16, 1)  # value = 4 row + column: rows stay rows
    small = resize_queries(ramp, (4, 4), (2, 2)).view(2, 2)
    assert small[0, 1] - small[0, 0] < small[1, 0] - small[0, 0]
    assert float((small.mean() - ramp.mean()).abs()) < 1e-5


@pytest.mark.parametrize("where", ["cross", "self", "all"])
@pytest.mark.parametrize(
    "settings", [{}, {"heads": "all"}, {"tokens": [1, 2]}, {"grid": (4, 4)}, {"only_conditional": False}], ids=str
)
def test_predicted_bytes_are_what_a_run_keeps(unet, where, settings):
    recorder = Recorder(**settings)
    noise = PictureNoise([1, 2])
    context, empty = torch.randn(2, NUM_WORDS, 16), torch.randn(1, NUM_WORDS, 16)
    kept = 4 if settings.get("only_conditional") is False else 2
    predicted = recorder.predicted_bytes(unet, 8, kept, 2, context_length=NUM_WORDS, where=where)
    run = sample(Guided(unet, context, empty, 3.0), noise.initial((4, 8, 8)), NoiseSchedule(), num_steps=2)
    with torch.inference_mode(), watch(unet, recorder, where):
        list(run)
    assert recorder.num_bytes == predicted == sum(record.probs.nbytes for record in recorder.records)


def test_limit_is_refused_with_the_figure(unet, inputs):
    recorder = Recorder(limit_bytes=3 * 2**20)
    predicted = recorder.predicted_bytes(unet, 64, 4, 50, context_length=77)
    with pytest.raises(AttentionTapError, match=rf"{predicted / 2**20:,.1f} MiB.*3\.0 MiB"):
        recorder.require_room(predicted)
    tight = Recorder(limit_bytes=2 * 64 * NUM_WORDS * 2)  # room for one map of the finest level
    with torch.inference_mode(), pytest.raises(AttentionTapError, match="limit_bytes"), watch(unet, tight):
        unet(*inputs)
    assert len(tight.records) == 1 and tight.num_bytes <= tight.limit_bytes


def test_maps_for_averages_what_matches():
    recorder = Recorder()
    coarse = Site("mid.block0.layer0.cross", "mid", 1, "cross", 2)
    maps = {step: fake_probs(seed=step) for step in (0, 1)}
    for step, probs in maps.items():
        recorder(fake_call(CallInfo(step, 500, GUIDED.rows)), probs)
        recorder(fake_call(CallInfo(step, 500, GUIDED.rows), site=coarse, grid=(1, 1)), probs[:, :, :1])
    recorder(fake_call(site=Site("mid.block0.layer0.self", "mid", 1, "self", 2)), fake_probs(m=6))

    def expected(probs, rows):
        return probs[rows].mean((0, 1))[:, 2].view(2, 3)

    fine = SITE.name
    got = recorder.maps_for(2, site=fine, step=1, prompt=0)
    assert got.shape == (2, 3) and got.dtype == torch.float32
    assert worst(got, expected(maps[1], [2])) < 1e-3
    assert worst(recorder.maps_for(2, fine, 0), expected(maps[0], [2, 3])) < 1e-3
    both = (expected(maps[0], [2, 3]) + expected(maps[1], [2, 3])) / 2
    assert worst(recorder.maps_for(2, fine), both) < 1e-3
    assert worst(recorder.maps_for(2, lambda site: site.stage == "up"), both) < 1e-3
    flat = sum(maps[step][2:, :, 0, 2].mean() for step in (0, 1)) / 2  # the coarse map has one position
    assert worst(recorder.maps_for(2), (both + flat) / 2) < 1e-3
    assert recorder.maps_for(2, coarse.name).shape == (1, 1)


def test_maps_for_leaves_rows_without_their_sentence_out():
    probs = fake_probs()
    recorder = Recorder(only_conditional=False)
    recorder(fake_call(GUIDED), probs)
    assert worst(recorder.maps_for(1), probs[2:].mean((0, 1))[:, 1].view(2, 3)) < 1e-3
    undeclared = Recorder()
    undeclared(fake_call(), probs)
    assert worst(undeclared.maps_for(1), probs.mean((0, 1))[:, 1].view(2, 3)) < 1e-3


def test_maps_for_refuses_with_what_there_is():
    recorder = Recorder(tokens=[1, 2])
    with pytest.raises(AttentionTapError, match="no recorded map"):
        recorder.maps_for(1)
    recorder(fake_call(GUIDED), fake_probs())
    for settings in ({"step": 9}, {"prompt": 7}):
        with pytest.raises(AttentionTapError, match=r"up\.0\.block0\.layer0\.cross.*steps \[3\]"):
            recorder.maps_for(1, **settings)
    with pytest.raises(AttentionTapError, match=r"nowhere.*up\.0\.block0"):
        recorder.maps_for(1, site="nowhere")
    with pytest.raises(AttentionTapError, match=r"not kept.*\(1, 2\)"):
        recorder.maps_for(0)
    whole = Recorder()
    whole(fake_call(GUIDED), fake_probs())
    for token in (-1, NUM_WORDS):
        with pytest.raises(AttentionTapError, match="0 to 4"):
            whole.maps_for(token)


def test_recorded_maps_are_the_models_own(unet, inputs):
    """The whole way on one layer: maps_for gives what softmax(q k^T / sqrt(d)) gives by hand."""
    recorder, kept = Recorder(), []

    def keep(call, probs):
        kept.append(probs.clone())

    name = "up.0.block0.layer0.cross"
    with torch.inference_mode(), watch(unet, chain(recorder, keep), name):
        unet(*inputs)
    assert worst(recorder.maps_for(2), kept[0].mean((0, 1))[:, 2].view(8, 8)) < 1e-3
    assert select_sites(unet.sites(), name)[0] == recorder.records[0].call.site
