"""What the paper's other models are made of, against diffusers: the same names, sizes and numbers."""

import dataclasses

import pytest
import torch
from test_parity import assert_close, copy_to, randomize, shapes

from ldm_tutor import presets
from ldm_tutor.config import AutoencoderConfig, BertEncoderConfig, ClassEncoderConfig, UNetConfig, VQAutoencoderConfig
from ldm_tutor.errors import ConfigError, ShapeError, WeightsError
from ldm_tutor.models.autoencoder import Autoencoder
from ldm_tutor.models.bert_encoder import BertEncoder
from ldm_tutor.models.class_encoder import ClassEncoder
from ldm_tutor.models.unet import UNet
from ldm_tutor.models.vector_quantizer import BETA, VectorQuantizer, VQAutoencoder
from ldm_tutor.weights import foreign
from ldm_tutor.weights.files import load_model, save_model
from ldm_tutor.weights.names import BERT_DIFFUSERS, PLAIN_UNET_DIFFUSERS, VQ_DIFFUSERS, rename, rules_for

PLAIN = UNetConfig(
    in_channels=5, out_channels=3, channels=32, channel_mult=(1, 2, 3), num_res_blocks=2, attention_levels=(1,),
    head_channels=16, context_dim=None, norm_groups=8,
)  # fmt: skip
PLAIN_UNETS = {
    "heads of one width": PLAIN,
    "one head": dataclasses.replace(PLAIN, head_channels=None, num_heads=1, num_res_blocks=1),
    "attention in the middle only": dataclasses.replace(PLAIN, attention_levels=()),
    "residual blocks change the side": dataclasses.replace(PLAIN, resblock_updown=True, num_res_blocks=1),
    "scale and shift": dataclasses.replace(PLAIN, scale_shift_norm=True, num_res_blocks=1),
    "churches": dataclasses.replace(
        PLAIN, resblock_updown=True, scale_shift_norm=True, channel_mult=(1, 2), attention_levels=(0,)
    ),
}
CONTEXT_UNETS = {
    "classes, heads of one width": UNetConfig(
        in_channels=3, out_channels=3, channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(0, 1),
        head_channels=16, context_dim=20, norm_groups=8,
    ),
    "classes, one head": UNetConfig(
        channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(1,), num_heads=1, context_dim=20,
        norm_groups=8,
    ),
    "scale and shift": UNetConfig(
        channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(1,), num_heads=2, context_dim=20,
        norm_groups=8, scale_shift_norm=True,
    ),
    "three blocks deep": UNetConfig(
        channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(1,), head_channels=16, context_dim=20,
        norm_groups=8, transformer_depth=3,
    ),
}  # fmt: skip
KL = AutoencoderConfig(channels=16, channel_mult=(1, 2, 2), latent_channels=5, norm_groups=8, attention_levels=(1, 2))
VQ = VQAutoencoderConfig(channels=16, channel_mult=(1, 2), latent_channels=3, norm_groups=8, codebook_size=40)
VQS = {
    "like f4": VQ,
    "like f4-noattn": dataclasses.replace(VQ, mid_attention=False),
    "like f8": dataclasses.replace(VQ, channel_mult=(1, 2, 2), latent_channels=4, attention_levels=(2,)),
}
BERT = BertEncoderConfig(vocab_size=50, context_length=12, width=24, num_layers=3, num_heads=2, head_channels=8)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize("name", PLAIN_UNETS)
def test_unet_without_a_context(name):
    diffusers = pytest.importorskip("diffusers")
    config = PLAIN_UNETS[name]
    ours = randomize(UNet(config))
    theirs = copy_to(diffusers.UNet2DModel(**foreign.unet_arguments(config)), ours, config)
    latents, t = torch.randn(2, config.in_channels, 16, 8), torch.tensor([981, 3])
    assert_close(ours(latents, t), theirs(latents, t).sample)


@pytest.mark.parametrize("name", CONTEXT_UNETS)
def test_unet_with_one_vector_per_class(name):
    diffusers = pytest.importorskip("diffusers")
    config = CONTEXT_UNETS[name]
    ours = randomize(UNet(config))
    theirs = copy_to(diffusers.UNet2DConditionModel(**foreign.unet_arguments(config)), ours, config)
    context = ClassEncoder(ClassEncoderConfig(num_classes=9, width=20))(torch.tensor([8, 0]))
    assert context.shape == (2, 1, 20)
    latents, t = torch.randn(2, config.in_channels, 16, 8), torch.tensor([981, 3])
    assert_close(ours(latents, t, context), theirs(latents, t, context).sample)


def test_autoencoder_with_attention_at_two_levels():
    diffusers = pytest.importorskip("diffusers")
    ours = randomize(Autoencoder(KL))
    theirs = copy_to(diffusers.AutoencoderKL(**foreign.autoencoder_arguments(KL)), ours, KL)
    pictures, latents = torch.rand(2, 3, 16, 24) * 2 - 1, torch.randn(2, 5, 4, 6)
    assert_close(ours.encode(pictures).mean, theirs.encode(pictures).latent_dist.mean)
    assert_close(ours.decode(latents), theirs.decode(latents).sample)


@pytest.mark.parametrize("name", VQS)
def test_autoencoder_with_a_codebook(name):
    diffusers = pytest.importorskip("diffusers")
    config = VQS[name]
    ours = randomize(VQAutoencoder(config))
    theirs = copy_to(diffusers.VQModel(**foreign.autoencoder_arguments(config)), ours, config)
    pictures = torch.rand(2, 3, 16, 24) * 2 - 1
    features = ours.encode(pictures)
    assert_close(features, theirs.encode(pictures).latents)
    assert_close(ours.decode(features), theirs.decode(features).sample)
    assert_close(ours(pictures), theirs(pictures).sample)
    assert theirs.config.scaling_factor == config.scale_factor == 1.0

    quantized = ours.quantizer(features)
    codes, loss, (_, _, indices) = theirs.quantize(features)
    assert len(quantized.indices.unique()) > 3
    assert torch.equal(quantized.indices.flatten(), indices.flatten())
    assert_close(quantized.latents, codes)
    assert float(quantized.loss) == pytest.approx(float(loss), rel=1e-5)


def test_bert_encoder():
    latent_diffusion = pytest.importorskip("diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion")
    ours = randomize(BertEncoder(BERT))
    config = latent_diffusion.LDMBertConfig(**foreign.bert_arguments(BERT))
    theirs = latent_diffusion.LDMBertModel(config).eval()
    head = {name: value for name, value in theirs.state_dict().items() if name.startswith("to_logits")}
    assert sum(value.numel() for value in head.values()) == (BERT.width + 1) * BERT.vocab_size
    theirs.load_state_dict(rename(ours.state_dict(), BERT_DIFFUSERS, "to_foreign") | head, strict=True)
    tokens = torch.randint(0, BERT.vocab_size, (3, BERT.context_length))
    tokens[1, 5:] = 0  # the padding, which is looked at like every other token
    assert_close(ours(tokens), theirs.model(tokens).last_hidden_state)


@pytest.mark.parametrize(
    "config", [*PLAIN_UNETS.values(), *CONTEXT_UNETS.values(), KL, *VQS.values()], ids=lambda each: type(each).__name__
)
def test_every_norm_has_the_same_epsilon(config):
    """1e-5 or 1e-6 hardly shows in the output of random weights."""
    with torch.device("meta"):
        ours, theirs = MODELS[type(config)](config), their_model(config)
    rules, kinds = rules_for(config), (torch.nn.GroupNorm, torch.nn.LayerNorm)
    ours = {rules.to_foreign(f"{name}.weight"): m.eps for name, m in ours.named_modules() if isinstance(m, kinds)}
    theirs = {f"{name}.weight": m.eps for name, m in theirs.named_modules() if isinstance(m, kinds)}
    assert ours == theirs


# ---------------------------------------------------------------- names


MODELS = {UNetConfig: UNet, AutoencoderConfig: Autoencoder, VQAutoencoderConfig: VQAutoencoder}


def their_model(config):
    diffusers = pytest.importorskip("diffusers")
    if isinstance(config, UNetConfig):
        plain = config.context_dim is None
        return (diffusers.UNet2DModel if plain else diffusers.UNet2DConditionModel)(**foreign.unet_arguments(config))
    kind = diffusers.VQModel if isinstance(config, VQAutoencoderConfig) else diffusers.AutoencoderKL
    return kind(**foreign.autoencoder_arguments(config))


def assert_bijection(config):
    with torch.device("meta"):
        ours, theirs = shapes(MODELS[type(config)](config)), shapes(their_model(config))
    rules = rules_for(config)
    assert rename(ours, rules, "to_foreign") == theirs
    assert rename(theirs, rules, "from_foreign") == ours


@pytest.mark.parametrize("name", presets.FIRST_STAGES)
def test_first_stage_names_are_a_bijection(name):
    assert_bijection(presets.first_stage(name))


HEADS_OF_MANY_WIDTHS = ("churches256", "inpainting_big", "semantic256", "inpainting")  # 8 heads at every level


@pytest.mark.parametrize("name", [name for name in presets.PAPER_MODELS if name not in HEADS_OF_MANY_WIDTHS])
def test_unet_names_are_a_bijection(name):
    assert_bijection(presets.PAPER_MODELS[name]().unet)


@pytest.mark.parametrize("name", HEADS_OF_MANY_WIDTHS)
def test_names_do_not_depend_on_the_heads(name):
    """UNet2DModel has one width of heads; names and shapes are the same with any number of heads."""
    config = presets.PAPER_MODELS[name]().unet
    with pytest.raises(ConfigError, match="num_heads=8"):
        foreign.unet_arguments(config)
    assert_bijection(dataclasses.replace(config, num_heads=1))


@pytest.mark.parametrize(
    "rules, ours, theirs",
    [
        (PLAIN_UNET_DIFFUSERS, "down.1.transformers.0.attn.to_out.bias", "down_blocks.1.attentions.0.to_out.0.bias"),
        (PLAIN_UNET_DIFFUSERS, "mid.transformers.0.norm.weight", "mid_block.attentions.0.group_norm.weight"),
        (PLAIN_UNET_DIFFUSERS, "up.0.upsample.time_proj.bias", "up_blocks.0.upsamplers.0.time_emb_proj.bias"),
        (VQ_DIFFUSERS, "quantizer.codebook.weight", "quantize.embedding.weight"),
        (VQ_DIFFUSERS, "decoder.levels.0.attentions.2.attn.to_q.bias", "decoder.up_blocks.0.attentions.2.to_q.bias"),
        (BERT_DIFFUSERS, "layers.3.norm2.weight", "model.layers.3.final_layer_norm.weight"),
    ],
)
def test_names_by_hand(rules, ours, theirs):
    assert (rules.to_foreign(ours), rules.from_foreign(theirs)) == (theirs, ours)


def test_names_of_another_model_are_refused():
    for rules, name in (
        (PLAIN_UNET_DIFFUSERS, "mid.transformers.0.blocks.0.norm1.weight"),
        (VQ_DIFFUSERS, "quantizer.weight"),
        (BERT_DIFFUSERS, "to_logits.weight"),
    ):
        with pytest.raises(WeightsError, match="no rule"):
            rules.to_foreign(name)


# ---------------------------------------------------------------- promises


def test_the_codebook_looks_up_and_lets_gradients_through():
    with torch.enable_grad():
        quantizer = VectorQuantizer(size=4, dim=2)
        assert quantizer.codebook.weight.abs().max() <= 1 / 4
        codes = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [5.0, 5.0]])
        quantizer.codebook.weight.data.copy_(codes)
        features = torch.tensor([[0.9, 0.2], [0.1, 0.8]]).T.view(1, 2, 1, 2).requires_grad_()
        out = quantizer(features)
        assert out.indices.tolist() == [[[1, 2]]]
        assert torch.allclose(out.latents, quantizer.look_up(out.indices))
        apart = (codes[[1, 2]].T.view(1, 2, 1, 2) - features).detach()
        assert out.loss.item() == pytest.approx((1 + BETA) * apart.square().mean().item())

        (through,) = torch.autograd.grad((3 * out.latents).sum(), features, retain_graph=True)
        assert torch.equal(through, torch.full_like(features, 3.0))
        to_features, to_codes = torch.autograd.grad(out.loss, (features, quantizer.codebook.weight))
        num = features.numel()
        assert torch.allclose(to_features, -2 / num * apart)  # the whole weight pulls the features to their codes
        assert torch.allclose(to_codes[1:3], BETA * 2 / num * apart[0, :, 0].T)  # a quarter pulls the codes
        assert torch.equal(to_codes[[0, 3]], torch.zeros(2, 2))


def test_scaled_features_come_back_as_pictures():
    ours = randomize(VQAutoencoder(dataclasses.replace(VQ, scale_factor=0.5)))
    pictures = torch.rand(1, 3, 8, 8) * 2 - 1
    latents = ours.to_latents(pictures)
    assert torch.equal(latents, 0.5 * ours.encode(pictures))
    assert torch.allclose(ours.to_pictures(latents), ours(pictures).clamp(-1, 1), atol=1e-6)


def test_a_new_plain_unet_adds_nothing_and_names_its_layers():
    unet = UNet(PLAIN)
    assert unet(torch.randn(1, 5, 8, 8), torch.tensor([3])).abs().max() == 0
    assert all(unet.down[1].transformers[0].attn.to_out.weight.flatten() == 0)
    names = [site.name for site in unet.sites()]
    assert names == [
        "down.1.block0.layer0.self", "down.1.block1.layer0.self", "mid.block0.layer0.self",
        "up.1.block0.layer0.self", "up.1.block1.layer0.self", "up.1.block2.layer0.self",
    ]  # fmt: skip
    assert {(site.level, site.num_heads) for site in unet.sites()} == {(1, 4), (2, 6)}


def test_a_plain_unet_s_attention_can_be_watched():
    from ldm_tutor.attention_maps.watch import watch

    unet = randomize(UNet(PLAIN))
    latents, t, seen = torch.randn(1, 5, 8, 16), torch.tensor([3]), []
    before = unet(latents, t)
    with watch(unet, lambda call, probs: seen.append((call.site.name, call.grid, tuple(probs.shape))), "self"):
        assert torch.equal(unet(latents, t), before)
    assert ("mid.block0.layer0.self", (2, 4), (1, 6, 8, 8)) in seen
    assert len(seen) == len(unet.sites())


def test_wrong_inputs_are_refused(unchecked_annotations):
    latents, t = torch.randn(1, 5, 8, 8), torch.tensor([3])
    with pytest.raises(ShapeError, match=r"UNet context.*expected: none"):
        UNet(PLAIN)(latents, t, torch.randn(1, 2, 16))
    with pytest.raises(ShapeError, match=r"UNet context.*None.*\(1, tokens, 20\)"):
        UNet(CONTEXT_UNETS["classes, one head"])(torch.randn(1, 4, 8, 8), t)
    with pytest.raises(ShapeError, match=r"VQAutoencoder.encode.*multiples of 2"):
        VQAutoencoder(VQ).encode(torch.zeros(1, 3, 7, 8))
    with pytest.raises(ShapeError, match="at most 12 tokens"):
        BertEncoder(BERT)(torch.zeros(1, 13, dtype=torch.int64))
    with pytest.raises(ConfigError, match=r"class number.*\[3, 9\].*0 to 8"):
        ClassEncoder(ClassEncoderConfig(num_classes=9))(torch.tensor([3, 9]))


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: UNetConfig(channels=48, norm_groups=16, head_channels=32), "head_channels=32"),
        (lambda: AutoencoderConfig(attention_levels=(4,)), "levels 0 to 3"),
        (lambda: VQAutoencoderConfig(codebook_size=1), "codebook_size"),
        (lambda: ClassEncoderConfig(num_classes=0), "num_classes"),
        (lambda: BertEncoderConfig(head_channels=0), "head_channels"),
    ],
)
def test_settings_out_of_range(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


@pytest.mark.parametrize(
    "kind, model",
    [
        ("vq_autoencoder", VQAutoencoder(VQ)),
        ("bert_encoder", BertEncoder(BERT)),
        ("class_encoder", ClassEncoder(ClassEncoderConfig(num_classes=9, width=20))),
        ("autoencoder", Autoencoder(KL)),
        ("unet", UNet(PLAIN)),
    ],
)
def test_files_hold_them(kind, model, tmp_path):
    path = save_model(tmp_path / "model.safetensors", model, kind=kind, config=model.config)
    back = load_model(path, kind)
    assert (type(back), back.config) == (type(model), model.config)
    assert all(torch.equal(back.state_dict()[name], value) for name, value in model.state_dict().items())


def test_what_came_later_is_not_written_where_it_is_not_used():
    """Weights and checkpoints of the first models are equal to what would be written today."""
    assert "attention_levels" not in AutoencoderConfig().to_dict()
    assert set(UNetConfig().to_dict()) == {
        "in_channels", "out_channels", "channels", "channel_mult", "num_res_blocks", "attention_levels", "num_heads",
        "context_dim", "transformer_depth", "norm_groups",
    }  # fmt: skip
    assert PLAIN.to_dict()["head_channels"] == 16
    assert UNetConfig.from_dict(PLAIN.to_dict()) == PLAIN
    assert VQAutoencoderConfig.from_dict(VQS["like f8"].to_dict()) == VQS["like f8"]
