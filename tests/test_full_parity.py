"""The models at full size against diffusers and transformers, on the same random weights (`make test-full`).

Each test adds a line to the report: the largest absolute difference as a part of the largest absolute number of the
output, in float32 (at most 1e-5) and, for the record, in bfloat16. LDM_TUTOR_FULL_LOG names a file for the report.
"""

import dataclasses
import gc
import os
import platform
from pathlib import Path

import pytest
import torch
from test_parity import TOLERANCE, randomize

from ldm_tutor.config import sd_v1
from ldm_tutor.errors import AttentionTapError
from ldm_tutor.models.autoencoder import Autoencoder
from ldm_tutor.models.bert_encoder import BertEncoder
from ldm_tutor.models.clip import Clip
from ldm_tutor.models.image_encoder import ImageEncoder
from ldm_tutor.models.text_encoder import TextEncoder
from ldm_tutor.models.tokenizer import Tokenizer
from ldm_tutor.models.unet import UNet
from ldm_tutor.models.vector_quantizer import VQAutoencoder
from ldm_tutor.presets import PAPER_MODELS, first_stage, sd_v1_inpainting
from ldm_tutor.weights import foreign
from ldm_tutor.weights.names import BERT_DIFFUSERS, CLIP_TRANSFORMERS, rename, rules_for

pytestmark = [pytest.mark.full, pytest.mark.timeout(1800)]

SD = sd_v1()
START_ID, END_ID = 49406, 49407
PLAIN_UNETS = ("celebahq", "bsr_sr")  # those that diffusers' UNet2DModel can be
ONE_HEAD = ("semantic256", "inpainting")  # with one head they could: it has one width of heads for all levels
CONTEXT_UNETS = ("text2img_1p4b", "text2img256", "cin256", "cin256_v2", "layout2img", "rdm768")


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(autouse=True, scope="module")
def threads(two_threads):
    """As many as OMP_NUM_THREADS says: a machine that is shared may have only one core free."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))


class Report(list):
    """A table that the tests fill, one text per row; the file has every row as soon as it is known."""

    def append(self, row):
        import diffusers
        import transformers

        super().append(row)
        lines = [
            "Full size, the same random weights: largest |difference| / largest |output|",
            f"torch {torch.__version__}, diffusers {diffusers.__version__}, transformers {transformers.__version__}, "
            f"{platform.machine()} CPU",
            "float32: ours and theirs. bfloat16: ours and theirs, and each of them against theirs in float32.",
            "",
            f"{'what':48} {'float32':>9} {'bfloat16':>9} {'ours-f32':>9} {'theirs-f32':>10}",
            *self,
        ]
        if name := os.environ.get("LDM_TUTOR_FULL_LOG"):
            Path(name).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


@pytest.fixture(scope="module")
def report():
    return Report()


def made(kind, config, **arguments):
    """A model of ours with random weights, without the time that its own initialisation would take."""
    with torch.device("meta"):
        model = kind(config, **arguments)
    return randomize(model.to_empty(device="cpu"))


def theirs_with(build, state):
    """Their model on the very same tensors, strictly."""
    with torch.device("meta"):
        model = build()
    model.load_state_dict(state, strict=True, assign=True)
    left = [name for name, value in [*model.named_parameters(), *model.named_buffers()] if value.is_meta]
    if left:  # constants that are not in the state: a model built in the usual way has them
        model = build()
        model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def apart(one, other):
    assert one.shape == other.shape and other.std() > 1e-3
    return float((one.float() - other.float()).abs().max() / other.float().abs().max())


def compare(report, what, ours, theirs, runs):
    """`runs`: name, and a function of (our model, their model, number type) that gives both outputs."""
    wide = {name: run(ours, theirs, torch.float32) for name, run in runs.items()}
    narrow_ours, narrow_theirs = ours.bfloat16(), theirs.bfloat16()
    worst = 0.0
    for name, run in runs.items():
        one, other = wide[name]
        half_one, half_other = run(narrow_ours, narrow_theirs, torch.bfloat16)
        exact = apart(one, other)
        halves = (apart(half_one, half_other), apart(half_one, other), apart(half_other, other))
        report.append(f"{f'{what}, {name}':48} {exact:9.1e} {halves[0]:9.1e} {halves[1]:9.1e} {halves[2]:10.1e}")
        worst = max(worst, exact)
        assert halves[1] <= 2 * halves[2] + 0.01  # in bfloat16 as near to the exact answer as theirs
    assert worst <= TOLERANCE


def unet_runs(config, side):
    latents, t = torch.randn(1, config.in_channels, side, side), torch.tensor([481])
    context = None if config.context_dim is None else torch.randn(1, 77, config.context_dim)

    def call(ours, theirs, dtype):
        x, words = latents.to(dtype), None if context is None else context.to(dtype)
        if words is None:
            return ours(x, t), theirs(x, t).sample
        return ours(x, t, words), theirs(x, t, words).sample

    return {f"{side}x{side} latents": call}


def their_unet(config):
    import diffusers

    kind = diffusers.UNet2DModel if config.context_dim is None else diffusers.UNet2DConditionModel
    return lambda: kind(**foreign.unet_arguments(config))


@pytest.mark.parametrize("name", ["sd_v1", "sd_v1_inpainting", *CONTEXT_UNETS, *PLAIN_UNETS, *ONE_HEAD])
def test_unet(report, name):
    presets = {"sd_v1": sd_v1, "sd_v1_inpainting": sd_v1_inpainting, **PAPER_MODELS}
    config = presets[name]().unet
    if name in ONE_HEAD:
        config, name = dataclasses.replace(config, num_heads=1), f"{name} (with one head)"
    ours = made(UNet, config)
    theirs = theirs_with(their_unet(config), rename(ours.state_dict(), rules_for(config), "to_foreign"))
    compare(report, f"U-Net {name}", ours, theirs, unet_runs(config, 32 if name == "sd_v1" else 16))


@pytest.mark.parametrize("name", ["kl_f4", "kl_f8", "kl_f16", "kl_f32", "vq_f4", "vq_f4_noattn", "vq_f8", "vq_f16"])
def test_autoencoder(report, name):
    import diffusers

    config = first_stage(name)
    quantized = name.startswith("vq")
    ours = made(VQAutoencoder if quantized else Autoencoder, config)
    kind = diffusers.VQModel if quantized else diffusers.AutoencoderKL
    state = rename(ours.state_dict(), rules_for(config), "to_foreign")
    theirs = theirs_with(lambda: kind(**foreign.autoencoder_arguments(config)), state)
    side = 128 if name == "kl_f8" else 64
    pictures = torch.rand(1, 3, side, side) * 2 - 1
    latents = torch.randn(1, config.latent_channels, side // config.downsampling, side // config.downsampling)
    if quantized:  # codes, so that the look-up in bfloat16 does not fall for a neighbour
        indices = torch.randint(0, config.codebook_size, (1, *latents.shape[2:]))
        latents = ours.quantizer.look_up(indices)

    def encode(ours, theirs, dtype):
        x = pictures.to(dtype)
        if quantized:
            return ours.encode(x), theirs.encode(x).latents
        return ours.encode(x).mean, theirs.encode(x).latent_dist.mean

    def decode(ours, theirs, dtype):
        return ours.decode(latents.to(dtype)), theirs.decode(latents.to(dtype)).sample

    compare(report, f"autoencoder {name}", ours, theirs, {f"encode {side}": encode, f"decode {side}": decode})


def sentences():
    tokens = torch.randint(0, START_ID, (2, 77))
    tokens[:, 0] = START_ID
    tokens[0, 8:], tokens[1, 76:] = END_ID, END_ID
    return tokens


def test_clip_text(report):
    import transformers

    config, tokens = SD.clip.text, sentences()
    ours = made(TextEncoder, config)
    arguments = foreign.text_arguments(config, start_id=START_ID, end_id=END_ID)
    state = rename(ours.state_dict(), rules_for(config), "to_foreign")
    theirs = theirs_with(lambda: transformers.CLIPTextModel(transformers.CLIPTextConfig(**arguments)), state)
    run = lambda ours, theirs, dtype: (ours(tokens), theirs(tokens).last_hidden_state)  # noqa: E731
    compare(report, "CLIP ViT-L/14 text", ours, theirs, {"2 sentences": run})


def test_clip_image(report):
    import transformers

    config, pictures = SD.clip.image, torch.randn(2, 3, 224, 224)
    ours = made(ImageEncoder, config)
    state = rename(ours.state_dict(), rules_for(config), "to_foreign")
    arguments = foreign.image_arguments(config)
    theirs = theirs_with(lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**arguments)), state)
    run = lambda ours, theirs, dtype: (ours(pictures.to(dtype)), theirs(pictures.to(dtype)).pooler_output)  # noqa: E731
    compare(report, "CLIP ViT-L/14 image", ours, theirs, {"2 pictures": run})


def test_clip(report):
    """Both towers and what joins them."""
    import transformers

    tokens, pictures = sentences(), torch.randn(2, 3, 224, 224)
    ours = made(Clip, SD.clip, end_id=END_ID)
    torch.nn.init.constant_(ours.logit_scale, 3.0)
    arguments = foreign.clip_arguments(SD.clip, start_id=START_ID, end_id=END_ID)
    state = rename(ours.state_dict(), CLIP_TRANSFORMERS, "to_foreign")
    theirs = theirs_with(lambda: transformers.CLIPModel(transformers.CLIPConfig(**arguments)), state)

    def run(ours, theirs, dtype):
        return ours(pictures.to(dtype), tokens), theirs(tokens, pictures.to(dtype)).logits_per_image

    compare(report, "CLIP ViT-L/14 whole", ours, theirs, {"2 x 2": run})


@pytest.mark.parametrize("name", ["text2img_1p4b", "text2img256", "layout2img"])
def test_bert(report, name):
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    config = PAPER_MODELS[name]().condition
    ours = made(BertEncoder, config)
    state = rename(ours.state_dict(), BERT_DIFFUSERS, "to_foreign")
    state |= {"to_logits.weight": torch.zeros(config.vocab_size, config.width)}
    state |= {"to_logits.bias": torch.zeros(config.vocab_size)}
    theirs = theirs_with(lambda: LDMBertModel(LDMBertConfig(**foreign.bert_arguments(config))), state)
    tokens = torch.randint(0, config.vocab_size, (2, config.context_length))
    run = lambda ours, theirs, dtype: (ours(tokens), theirs.model(tokens).last_hidden_state)  # noqa: E731
    compare(report, f"LDMBert {name}", ours, theirs, {"2 texts": run})


def test_all_32_attention_layers_recorded(report):
    """Mean over heads, three tokens, every map brought to 16x16: what was predicted is what it takes."""
    from ldm_tutor.attention_maps.record import Recorder
    from ldm_tutor.attention_maps.watch import watch

    unet = made(UNet, SD.unet)
    x, t, words = torch.randn(2, 4, 32, 32), torch.tensor([481, 481]), torch.randn(2, 77, 768)
    plain = unet(x, t, words)
    recorder = Recorder(tokens=(1, 5, 76), grid=(16, 16))
    predicted = recorder.predicted_bytes(unet, 32, batch=2, num_steps=1, context_length=77, where="all")
    recorder.require_room(predicted)
    with watch(unet, recorder, "all") as sites:
        assert torch.equal(unet(x, t, words), plain)
    assert len(sites) == len(recorder.records) == 32
    assert {record.probs.shape[:3] for record in recorder.records} == {(2, 1, 256)}
    assert recorder.num_bytes == predicted
    assert recorder.maps_for(5).shape == (16, 16)
    every = Recorder(heads="all", limit_bytes=predicted)
    with pytest.raises(AttentionTapError, match="more memory than limit_bytes"), watch(unet, every, "all"):
        unet(x, t, words)
    assert torch.equal(unet(x, t, words), plain)  # no tap is left behind
    report.append(f"{'attention tap, 32 layers: output with and without':48} {'equal':>9}")


def test_a_whole_folder_both_ways(report, tmp_path):
    """Stable Diffusion v1 with random weights: written, opened by diffusers, drawn with, and read back."""
    import diffusers

    from ldm_tutor.sampling.guidance import Guided
    from ldm_tutor.sampling.loop import sample
    from ldm_tutor.sampling.noise import PictureNoise
    from ldm_tutor.schedule import NoiseSchedule
    from ldm_tutor.weights.diffusers_folder import export_diffusers, load_diffusers

    words = [f"{a}{b}" for a in "abcdefghij" for b in "klmnopqrst"]
    tokenizer = Tokenizer.train([" ".join(words)], vocab_size=600, context_length=77)
    parts = {
        "text_encoder": made(TextEncoder, SD.clip.text),
        "unet": made(UNet, SD.unet),
        "autoencoder": made(Autoencoder, SD.autoencoder),
    }
    prompts, noise = ["ak bl"], PictureNoise([5]).initial((4, 16, 16))
    export_diffusers(tmp_path, tokenizer=tokenizer, schedule=SD.schedule, picture_size=512, **parts)
    del parts

    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path, local_files_only=True)
    theirs.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "latent"}
    drawn = theirs(prompts, height=128, width=128, latents=noise, **settings).images
    their_picture = theirs.vae.decode(drawn / 0.18215).sample.clamp(-1, 1)
    kept = {name: theirs.unet.state_dict()[name].clone() for name in ("conv_in.weight", "conv_out.weight")}
    del theirs
    gc.collect()

    back = load_diffusers(tmp_path)
    assert back.unet.config == SD.unet and back.autoencoder.config == SD.autoencoder
    assert all(torch.equal(back.unet.state_dict()[name], value) for name, value in kept.items())
    context, empty = back.text_encoder(tokenizer(prompts)), back.text_encoder(tokenizer.empty(1))
    denoiser = Guided(back.unet, context, empty, 3.0)
    *_, last = sample(denoiser, noise, NoiseSchedule(back.schedule), num_steps=4)
    exact, pictures = apart(last.latents, drawn), apart(back.autoencoder.to_pictures(last.latents), their_picture)
    report.append(f"{'whole picture, 128x128, 4 steps: latents':48} {exact:9.1e}")
    report.append(f"{'whole picture, 128x128, 4 steps: pixels':48} {pictures:9.1e}")
    assert exact <= 1e-4 and pictures <= 1e-3
