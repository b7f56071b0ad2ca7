"""`train --preset`: the published numbers, tiny stand-ins trained through the command line, and what is refused."""

import dataclasses
import logging
import math

import pytest
import tiny
import torch
from PIL import Image

from ldm_tutor.cli import main
from ldm_tutor.config import DiscriminatorConfig, UNetConfig, VQAutoencoderConfig
from ldm_tutor.data.scenes.datasets import render_scenes, to_float
from ldm_tutor.errors import ConfigError
from ldm_tutor.evaluation import evaluate_autoencoder, load_judge
from ldm_tutor.losses.reconstruction import PerceptualDistance
from ldm_tutor.metrics.fid import judge_features
from ldm_tutor.metrics.reading import read_pictures
from ldm_tutor.models.clip import Clip
from ldm_tutor.models.judge import Judge, as_seen
from ldm_tutor.models.unet import UNet
from ldm_tutor.models.vector_quantizer import VQAutoencoder
from ldm_tutor.nn.work import work_of
from ldm_tutor.open_model import open_pipeline
from ldm_tutor.pipeline import load_pipeline
from ldm_tutor.presets import PaperModel
from ldm_tutor.training import memory, own_pictures, presets, recipe
from ldm_tutor.training.learner import Descent, Learner
from ldm_tutor.training.memory import Need, check_fits, gigabytes, rows_at_once, stage_need
from ldm_tutor.training.options import TrainingOptions
from ldm_tutor.training.presets import TRAINING_PRESETS, PaperRecipe, TrainingPreset, find_preset, middle, recipe_lines
from ldm_tutor.training.recipe import train_stage
from ldm_tutor.training.stages.autoencoder import COURSE_CRITIC, AutoencoderRecipe, AutoencoderStage
from ldm_tutor.training.stages.denoiser import BATCH_SIZE
from ldm_tutor.weights.compvis import load_compvis
from ldm_tutor.weights.diffusers_folder import export_diffusers
from ldm_tutor.weights.files import load_model, read_header
from ldm_tutor.weights.shipped import shipped_folder

CPU = torch.device("cpu")
SIDE = 64  # pixels of the stand-ins

# ---------------------------------------------------------------- tiny stand-ins of the presets


def tiny_sd():
    real = TRAINING_PRESETS["sd_v1"]().paper
    paper = PaperRecipe(
        run=dataclasses.replace(real.run, batch_size=4),
        coder=dataclasses.replace(real.coder, batch_size=2, peak_lr=2 * presets.BASE_LR, adversarial_step=1),
        drop_share=real.drop_share,
        coder_side=SIDE // 2,
        critic=DiscriminatorConfig(channels=8, num_layers=2),
    )
    return TrainingPreset(name="tiny_sd", model=tiny.CONFIG, paper=paper)


def tiny_faces():
    real = TRAINING_PRESETS["celebahq"]().paper
    paper = PaperRecipe(
        run=dataclasses.replace(real.run, batch_size=2, lr=2 * real.run.base_lr),
        coder=dataclasses.replace(real.coder, batch_size=2, peak_lr=2 * presets.BASE_LR),
        coder_side=SIDE,
        critic=DiscriminatorConfig(channels=8, num_layers=2),
    )
    unet = UNetConfig(
        in_channels=3, out_channels=3, channels=8, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(1,),
        num_heads=2, context_dim=None, norm_groups=4,
    )  # fmt: skip
    coder = VQAutoencoderConfig(channels=8, num_res_blocks=1, norm_groups=4, codebook_size=16)
    schedule = TRAINING_PRESETS["celebahq"]().model.schedule
    model = PaperModel(name="tiny_faces", picture_size=SIDE, autoencoder=coder, unet=unet, schedule=schedule)
    return TrainingPreset(name="tiny_faces", model=model, paper=paper)


def tiny_middle():
    clip = tiny.CONFIG.clip
    larger = dataclasses.replace(clip, image=dataclasses.replace(clip.image, picture_size=128, patch_size=64))
    model = dataclasses.replace(tiny.CONFIG, name="tiny_middle", picture_size=128, clip=larger)
    return TrainingPreset(name="tiny_middle", model=model)


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch):
    for make in (tiny_sd, tiny_faces, tiny_middle):
        monkeypatch.setitem(TRAINING_PRESETS, make.__name__, make)
    own_pictures.own_pictures.cache_clear()
    recipe._render.cache_clear()


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Run `ldm-tutor` with these words in an empty folder; return its code and all that it said."""
    monkeypatch.chdir(tmp_path)
    news = logging.getLogger("ldm_tutor")
    before = news.handlers[:], news.level

    def call(*words):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main.main([str(word) for word in words])
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        return stopped.value.code or 0, said.out + said.err

    yield call
    news.handlers[:], news.level = before


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """Six pictures with captions, larger than the model's."""
    folder = tmp_path_factory.mktemp("data") / "mine"
    folder.mkdir()
    scenes = render_scenes(6, "train", seed=3, resolution=96)
    for number, (picture, caption) in enumerate(zip(scenes.pictures, scenes.captions, strict=True)):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A tiny diffusers folder: the model whose frozen parts a denoiser takes."""
    pipe = tiny.make_pipeline()
    return export_diffusers(
        tmp_path_factory.mktemp("published") / "model", tokenizer=pipe.tokenizer, text_encoder=pipe.text_encoder,
        unet=pipe.unet, autoencoder=pipe.autoencoder, schedule=tiny.CONFIG.schedule, picture_size=64,
    )  # fmt: skip


FLAGS = ("--device", "cpu", "--precision", "float32", "--quiet")


def same_weights(one, other):
    a, b = load_model(one).state_dict(), load_model(other).state_dict()
    return all(torch.equal(a[name], b[name]) for name in a)


# ---------------------------------------------------------------- the published numbers


def test_denoisers_are_trained_as_published():
    sd, faces = find_preset("sd_v1"), find_preset("celebahq")
    assert sd.published("denoiser") == (2048, 1e-4, "fixed")
    assert faces.published("denoiser") == (48, 9.6e-5, "linear")
    assert sd.paper.descent.warmup == 10_000 and faces.paper.descent.warmup == 1
    for preset in (sd, faces):
        descent = preset.paper.descent
        assert (descent.betas, descent.weight_decay) == ((0.9, 0.999), 0.01)  # AdamW's own
        assert (descent.ema_decay, descent.max_norm, descent.floor) == (0.9999, math.inf, 1.0)
    assert (sd.paper.drop_share, sd.reads, faces.reads) == (0.1, True, False)
    assert (sd.model.picture_size, sd.model.latent_shape) == (512, (4, 64, 64))
    assert (faces.model.picture_size, faces.model.latent_shape) == (256, (3, 64, 64))
    assert (faces.model.schedule.beta_start, faces.model.schedule.beta_end) == (0.0015, 0.0195)


def test_autoencoders_are_trained_as_published():
    kl, vq = find_preset("sd_v1"), find_preset("celebahq")
    assert kl.published("autoencoder") == (24, pytest.approx(1.08e-4), "linear")
    assert vq.published("autoencoder") == (8, pytest.approx(3.6e-5), "linear")
    for preset in (kl, vq):
        coder, critic = preset.paper.coder, preset.paper.critic
        assert preset.side("autoencoder") == 256
        assert (coder.descent.betas, coder.descent.weight_decay, coder.descent.ema_decay) == ((0.5, 0.9), 0.0, None)
        assert (coder.perceptual_weight, coder.pixel_loss) == (1.0, "l1")
        assert (critic.channels, critic.num_layers) == (64, 3)
    coder = kl.paper.coder
    assert (coder.summed, coder.kl_weight) == (True, 1e-6)
    assert (coder.adversarial_weight, coder.adversarial_step) == (0.5, 50_001)
    coder = vq.paper.coder
    assert (coder.summed, coder.codebook_weight) == (False, 1.0)
    assert (coder.adversarial_weight, coder.adversarial_step) == (0.75, 0)


def test_another_batch_changes_the_rate_by_the_published_rule():
    assert find_preset("celebahq").rate("denoiser", 24) == pytest.approx(4.8e-5)
    assert find_preset("celebahq").rate("denoiser", 24, "fixed") == pytest.approx(9.6e-5)
    assert find_preset("sd_v1").rate("denoiser", 4) == 1e-4
    assert find_preset("sd_v1").rate("autoencoder", 5) == pytest.approx(5 * 4.5e-6)


@pytest.mark.parametrize(
    "name, unet, autoencoder", [("sd_v1", 859_520_964, 83_653_863), ("celebahq", 274_056_163, 55_322_782)]
)
def test_the_real_models_are_counted_without_memory(name, unet, autoencoder):
    preset = find_preset(name)
    denoiser = stage_need(preset, "denoiser", torch.float32)
    assert denoiser.parameters == unet
    assert denoiser.shared == 20 * unet  # weight, gradient, Adam's two, average: four bytes each
    coder = stage_need(preset, "autoencoder", torch.float32)
    assert coder.parameters == autoencoder + 2_765_633  # its critic
    assert coder.shared == 16 * coder.parameters  # no average
    assert 5e8 < denoiser.per_row < 4e9 < 2 * coder.per_row


def test_the_middle_size_is_the_course_s_model_on_a_larger_grid():
    small, at_128, at_256 = find_preset("middle").model, middle(128), middle(256)
    assert small == at_128 and at_128.latent_shape == (4, 32, 32) and at_256.latent_shape == (4, 64, 64)
    assert (at_128.clip.image.patch_size, at_256.clip.image.patch_size) == (16, 32)
    scenes = TrainingOptions(folder=None).model
    assert at_128.unet == scenes.unet and at_128.autoencoder == scenes.autoencoder
    own = TrainingOptions(folder=None, preset=find_preset("middle"), data="somewhere").model
    assert own.picture_size == 128 and own.clip.text.vocab_size > at_128.clip.text.vocab_size


def multiply_adds(model):
    def make():
        unet, inputs = UNet(model.unet), (torch.zeros(1, 4, 16, 16), torch.zeros(1), torch.zeros(1, 32, 128))
        return lambda: unet(*inputs)

    return work_of(make).multiply_adds


def test_the_small_size_draws_on_the_course_s_latents_with_less_work():
    preset = find_preset("small")
    small, scenes = preset.model, TrainingOptions(folder=None).model
    assert small.latent_shape == scenes.latent_shape and small.autoencoder == scenes.autoencoder
    assert small.clip.text == scenes.clip.text and small.clip.image.patch_size == 16
    assert multiply_adds(small) < 0.6 * multiply_adds(scenes)
    told = dict(presets.recipe_lines(preset, "denoiser", preset.course.batch_size))
    assert told["batch"] == "64 rows" and told["learning rate"].startswith("0.00141421 ")  # twice the rows, root of 2
    as_usual = dict(presets.recipe_lines(preset, "denoiser", BATCH_SIZE))
    assert as_usual["learning rate"].startswith("0.001 ")
    assert dict(recipe_lines(preset, "denoiser", 32))["loss"].startswith("6 times")
    assert dict(recipe_lines(preset, "autoencoder", 32))["batch"] == "8 rows"
    assert not preset.departures("denoiser")  # its pictures are those that the judge sees


def test_wrong_names_are_told_the_nearest():
    with pytest.raises(ConfigError, match=r"given: 'midle'.*'middle'.*'sd_v1'.*did you mean middle"):
        find_preset("midle")
    with pytest.raises(ConfigError, match=r"one of \['scenes', 'small', 'middle'"):
        find_preset("dall-e")


def test_what_is_printed_is_what_is_trained():
    told = dict(recipe_lines(find_preset("middle"), "denoiser", 64, "linear"))
    assert told["batch"] == "64 rows" and told["learning rate"].startswith("0.002 ")
    told = dict(recipe_lines(find_preset("middle"), "autoencoder", 32))
    assert told["batch"] == "16 rows" and told["learning rate"].startswith("0.0015 ")
    told = dict(recipe_lines(find_preset("celebahq"), "denoiser", 24))
    assert told["batch"] == "24 rows"
    assert told["learning rate"] == "4.8e-05, constant; published: 9.6e-05 for 48, rule 'linear'"
    told = dict(recipe_lines(find_preset("sd_v1"), "autoencoder", 24))
    assert "betas (0.5, 0.9)" in told["optimiser"] and "50,001" in told["adversary"]
    assert dict(recipe_lines(find_preset("sd_v1"), "denoiser", 2048))["dropped sentences"] == "10%"


# ---------------------------------------------------------------- what a stage does with them


def test_a_rate_without_a_fall_and_without_a_cut():
    torch.manual_seed(0)
    descent = Descent(warmup=2)
    learner = Learner(torch.nn.Linear(2, 1), peak_lr=0.1, device=CPU, dtype=torch.float32, **descent.to_dict())
    assert [learner.lr_at(progress) for progress in (0.0, 0.5, 1.0)] == [0.05] * 3
    learner.num_updates = 5
    assert [learner.lr_at(progress) for progress in (0.0, 0.5, 1.0)] == [0.1] * 3
    (1e6 * learner.net(torch.ones(1, 2))).sum().backward()
    before = next(learner.net.parameters()).grad.clone()
    assert before.norm() > 1e6
    seen = []
    learner.optimizer.step = lambda: seen.append(next(learner.network.parameters()).grad.clone())
    learner.step(0.0)
    assert torch.equal(seen[0], before)


def coder_stage(config, dtype=torch.float32, **changes):
    torch.manual_seed(5)
    eye = PerceptualDistance(Judge(tiny.JudgeConfig(channels=8)))
    given = AutoencoderRecipe(batch_size=2, **changes)
    pictures = render_scenes(8, "train", seed=1, resolution=32).pictures
    torch.manual_seed(6)
    return AutoencoderStage(config, pictures, eye, device=CPU, dtype=dtype, recipe=given)


def gradients(stage, step=0, progress=0.0):
    caught = {}
    stage.coder.step = lambda _: caught.update(
        {name: each.grad.clone() for name, each in stage.coder.net.named_parameters() if each.grad is not None}
    )
    stage.critic.step = lambda _: caught.update(critic=True)
    stage.coder.num_updates = step
    values = stage.train_step(torch.Generator().manual_seed(3), progress)
    return caught, values


def test_summed_losses_are_means_times_the_pixels():
    config = tiny.CONFIG.autoencoder
    means, _ = gradients(coder_stage(config, torch.float64, kl_weight=0.0))
    sums, _ = gradients(coder_stage(config, torch.float64, kl_weight=0.0, summed=True))
    for name, mean in means.items():
        wanted = mean * (3 * 32 * 32)
        torch.testing.assert_close(sums[name], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("step, joins", [(0, False), (1, False), (2, True), (9, True)])
def test_the_adversary_joins_by_the_step(step, joins):
    caught, values = gradients(coder_stage(tiny.CONFIG.autoencoder, adversarial_step=2), step=step, progress=0.0)
    assert ("critic" in caught) is joins
    assert not gradients(coder_stage(tiny.CONFIG.autoencoder), step=step, progress=0.0)[0].get("critic")


def test_a_codebook_learns_by_its_own_loss():
    config = tiny_faces().model.autoencoder
    caught, values = gradients(coder_stage(config, codebook_weight=2.0))
    assert values["codebook"] > 0 and "kl" not in values
    weight = caught["quantizer.codebook.weight"]
    assert weight.abs().sum() > 0
    once, _ = gradients(coder_stage(config, codebook_weight=1.0))
    torch.testing.assert_close(weight, 2 * once["quantizer.codebook.weight"])


def test_a_codebook_is_searched_in_float32():
    stage = coder_stage(tiny_faces().model.autoencoder, torch.bfloat16, adversarial_step=0, summed=True)
    values = stage.train_step(torch.Generator().manual_seed(3), 0.0)
    assert all(math.isfinite(value) for value in values.values())
    quantizer = stage.coder.net.quantizer
    assert quantizer.codebook.weight.dtype == torch.bfloat16
    with torch.no_grad():
        quantizer.codebook.weight[:] = 1 + torch.arange(16)[:, None] / 128  # next to each other in bfloat16
    own = quantizer.codebook.weight.detach().T.reshape(1, 3, 4, 4).clone()
    assert quantizer.nearest(own).flatten().tolist() == list(range(16))


def test_checkpoints_of_the_course_s_own_recipe_stay_readable():
    assert set(AutoencoderRecipe().to_dict()) == {
        "perceptual_weight", "kl_weight", "adversarial_weight", "adversarial_start", "batch_size", "peak_lr",
        "decoder_only",
    }  # fmt: skip
    assert "descent" in find_preset("sd_v1").paper.coder.to_dict()
    assert coder_stage(tiny.CONFIG.autoencoder).settings["discriminator"] == COURSE_CRITIC.to_dict()


# ---------------------------------------------------------------- the stand-ins, through the command line


def test_a_full_size_denoiser_is_trained_resumed_and_opened(run, mine, published, tmp_path):
    train = ("train", "denoiser", "--preset", "tiny_sd", "--data", mine, "--frozen", published, *FLAGS)
    code, said = run(*train, "--out", "whole", "--steps", 3)
    assert code == 0, said
    assert "--weights whole/diffusers" in said
    assert run(*train, "--out", "parts", "--steps", 2)[0] == 0
    assert not same_weights(tmp_path / "whole/unet.safetensors", tmp_path / "parts/unet.safetensors")
    code, said = run(*train, "--out", "parts", "--steps", 3, "--resume")
    assert code == 0, said
    assert same_weights(tmp_path / "whole/unet.safetensors", tmp_path / "parts/unet.safetensors")
    settings = torch.load(tmp_path / "whole/denoiser.checkpoint", weights_only=True)["settings"]
    assert (settings["batch_size"], settings["peak_lr"], settings["drop_share"]) == (4, 1e-4, 0.1)
    assert settings["descent"]["warmup"] == 10_000 and settings["balance_steps"] is False

    drawn = open_pipeline(tmp_path / "whole/diffusers").draw(["a red cat"], [1], num_steps=2)
    assert drawn.shape == (1, 3, 64, 64) and bool(drawn.isfinite().all())
    ours = load_model(tmp_path / "whole/unet.safetensors", "unet").state_dict()
    theirs = open_pipeline(tmp_path / "whole/diffusers").unet.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    code, said = run("draw", "a red cat", "--weights", "whole/diffusers", "--steps", 2, "--out", "cat.png")
    assert code == 0, said
    code, said = run("export", "--weights", "whole/diffusers", "--format", "compvis", "--out", "one.safetensors")
    assert code == 0, said


def test_a_full_size_model_goes_on_from_a_diffusers_folder(run, mine, published, tmp_path):
    words = ("--preset", "tiny_sd", "--data", mine, "--out", "more", "--steps", 1, *FLAGS)
    code, said = run("train", "denoiser", *words, "--frozen", published, "--start-from", published)
    assert code == 0, said
    code, said = run("train", "autoencoder", *words, "--start-from", published)
    assert code == 0, said
    theirs = open_pipeline(published)
    for name, model in (("unet", theirs.unet), ("autoencoder", theirs.autoencoder)):
        ours = load_model(tmp_path / f"more/{name}.safetensors")
        pairs = zip(ours.parameters(), model.parameters(), strict=True)
        assert 0 < max(float((a - b).detach().abs().max()) for a, b in pairs) < 1e-3, name


def test_a_full_size_autoencoder_is_trained_and_comes_before_the_frozen_one(run, mine, tmp_path):
    words = ("--preset", "tiny_sd", "--data", mine, "--out", "own", *FLAGS)
    code, said = run("train", "autoencoder", *words, "--steps", 3)
    assert code == 0, said
    assert "train denoiser --preset tiny_sd" in said
    header = read_header(tmp_path / "own/autoencoder.safetensors")
    assert header["config"]["scale_factor"] != tiny.CONFIG.autoencoder.scale_factor  # measured
    learners = torch.load(tmp_path / "own/autoencoder.checkpoint", weights_only=True)["learners"]
    assert (learners["autoencoder"]["num_updates"], learners["discriminator"]["num_updates"]) == (3, 2)
    tiny.save_folder(tmp_path / "ours")  # a folder of ours gives its text encoder; the autoencoder is that of --out
    code, said = run("train", "denoiser", *words, "--steps", 1, "--frozen", "ours")
    assert code == 0, said
    scale = open_pipeline(tmp_path / "own/diffusers").autoencoder.config.scale_factor
    assert scale == header["config"]["scale_factor"]


def test_a_model_without_sentences_is_trained_and_shows_its_pictures(run, mine, tmp_path):
    words = ("--preset", "tiny_faces", "--data", mine, "--out", "faces", *FLAGS)
    code, said = run("train", "autoencoder", *words, "--steps", 3)
    assert code == 0, said
    coder = load_model(tmp_path / "faces/autoencoder.safetensors")
    assert isinstance(coder, VQAutoencoder) and coder.config.scale_factor == 1.0
    code, said = run("train", "denoiser", *words, "--steps", 2)
    assert code == 0, said
    assert "samples.png" in said and "export --preset tiny_faces" in said
    assert Image.open(tmp_path / "faces/samples.png").size == (4 * SIDE, SIDE)
    parts = load_compvis(tmp_path / "faces/tiny_faces.safetensors", tiny_faces().model)
    ours = load_model(tmp_path / "faces/unet.safetensors", "unet").state_dict()
    assert all(torch.equal(ours[name], value) for name, value in parts.unet.state_dict().items())
    bare = tmp_path / "bare"  # such a model needs no captions either
    bare.mkdir()
    Image.new("RGB", (SIDE, SIDE), "red").save(bare / "red.png")
    more = ("--preset", "tiny_faces", "--data", bare, "--out", "faces", *FLAGS, "--overwrite")
    assert run("train", "denoiser", *more, "--steps", 1)[0] == 0


def test_the_middle_size_goes_through_all_stages(run, tmp_path):
    words = ("--preset", "tiny_middle", "--num-scenes", 64, "--out", "mid", *FLAGS)
    code, said = run("train", "all", *words, "--minutes", 0.02)
    assert code == 0, said
    pipe = load_pipeline(tmp_path / "mid")
    assert pipe.config.latent_shape == (4, 32, 32)
    assert pipe.draw(["a red cat"], [1], num_steps=2).shape == (1, 3, 128, 128)
    report = evaluate_autoencoder(pipe, load_judge(tmp_path / "mid"), num=4)
    assert report["psnr"]["num"] == 4


def test_the_shipped_perceptual_network_serves_every_size(run, tmp_path):
    words = ("--preset", "tiny_middle", "--num-scenes", 64, "--steps", 1, "--out", "mid", *FLAGS)
    code, said = run("train", "autoencoder", *words)
    assert code == 0, said
    assert (tmp_path / "mid/autoencoder.safetensors").is_file() and shipped_folder().is_dir()


def test_clip_begins_with_one_of_smaller_pictures(tmp_path):
    folder = tiny.save_folder(tmp_path / "small")
    small = load_model(folder / "clip.safetensors", "clip")
    large = presets.with_larger_patches(small, tiny_middle().model.clip)
    pictures = to_float(render_scenes(3, "test", seed=2).pictures)
    shown = pictures.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(large.image(shown), small.image(pictures), rtol=1e-4, atol=1e-5)
    assert presets.with_larger_patches(small, small.config) is small
    options = TrainingOptions(
        folder=tmp_path / "out", device="cpu", precision="float32", num_scenes=64, show_progress=False,
        preset=tiny_middle(), start_from=folder,
    )  # fmt: skip
    train_stage("clip", recipe.Budget(steps=1), options)
    after = load_model(tmp_path / "out/clip.safetensors", "clip")
    assert isinstance(after, Clip) and after.config == tiny_middle().model.clip
    moved = [float((a - b).detach().abs().max()) for a, b in zip(after.parameters(), large.parameters(), strict=True)]
    assert 0 < max(moved) < 0.01


def test_the_judge_sees_larger_pictures_shrunk(tmp_path):
    judge = load_judge()
    small, large = (to_float(render_scenes(8, "test", seed=1, resolution=side).pictures) for side in (64, 128))
    assert torch.equal(as_seen(small), small) and as_seen(large).shape == small.shape
    again = [(reading.background, [thing.kind for thing in reading.objects]) for reading in read_pictures(judge, large)]
    first = [(reading.background, [thing.kind for thing in reading.objects]) for reading in read_pictures(judge, small)]
    assert again == first
    assert torch.equal(judge_features(judge, large), judge_features(judge, as_seen(large)))


# ---------------------------------------------------------------- memory


def test_the_count_is_near_to_what_backward_keeps():
    """What autograd saves for backward, counted on a real forward pass, weights left out."""
    model = tiny.CONFIG
    unet = UNet(model.unet)
    weights = {each.untyped_storage().data_ptr() for each in unet.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor, so that no other takes its place
        return tensor

    x, t = torch.randn(8, *model.latent_shape), torch.zeros(8)
    context = torch.randn(8, model.clip.text.context_length, model.clip.text.width)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = unet(x, t, context)
    real = sum(size for size, _ in kept.values()) / 8
    counted = memory.unet_need(model.unet, model.latent_shape[1], None, torch.float32).per_row / memory.BORROWED
    assert out.shape == x.shape and 0.9 * real < counted < 1.6 * real


def test_every_counted_stage_of_the_middle_size_is_counted():
    preset = find_preset("middle")
    needs = {stage: stage_need(preset, stage, torch.float32, 10_000) for stage in memory.STAGES}
    assert needs["autoencoder"].data == 2 * 10_000 * 3 * 128**2 == needs["clip"].data // 2
    assert needs["denoiser"].data == 2 * 10_000 * 8 * 32**2 * 2  # mean and log variance in 16 bits, and once more
    assert needs["clip"].parameters == sum(each.numel() for each in Clip(preset.model.clip, end_id=1).parameters())
    assert all(need.per_row > 10**5 for need in needs.values())


def test_needs_add_up():
    need = Need(parameters=1, shared=100, frozen=10, per_row=5, data=7)
    assert need.total(4) == 130 and need.total(4, processes=4) == 55
    assert need.most_rows(131) == 4 and need.most_rows(109) == 0
    assert (gigabytes(3.46e9), gigabytes(12e6)) == ("3.5 GB", "12 MB")


def test_what_does_not_fit_is_refused_with_both_figures(monkeypatch):
    need = Need(parameters=1, shared=10**9, frozen=0, per_row=10**9, data=10**9)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 5 * 10**9)
    check_fits(need, 3, CPU)
    with pytest.raises(ConfigError, match=r"4 rows .*6.0 GB; given: '5.0 GB free'; fits 3"):
        check_fits(need, 4, CPU, cure=lambda n: f"fits {n}")
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2 * 10**9)
    with pytest.raises(ConfigError, match=r"one row alone takes 3.0 GB; fits 0"):
        check_fits(need, 4, CPU, cure=lambda n: f"fits {n}")
    gpu = torch.device("cuda")
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**10 if device.type == "cuda" else 10**8)
    with pytest.raises(ConfigError, match=r"main memory.*1.0 GB; given: '100 MB free'"):
        check_fits(need, 4, gpu)


def test_a_training_that_cannot_fit_is_refused_before_anything_is_read(run, mine, published, tmp_path, monkeypatch):
    def never(*_):
        pytest.fail("pictures were read")

    monkeypatch.setattr("ldm_tutor.training.full_size.own_pictures", never)
    preset = tiny_sd()
    text = stage_need(preset, "denoiser", torch.float32, 6, own=True)
    words = ("--preset", "tiny_sd", "--data", mine, "--out", "out", *FLAGS)
    monkeypatch.setattr(memory, "free_bytes", lambda device: text.total(2) + text.data + 1)
    code, said = run("train", "denoiser", *words, "--steps", 1, "--frozen", published)
    assert code == 1 and "not enough memory on cpu for 4 rows" in said and "--accumulate 2, 2 rows at once" in said
    monkeypatch.setattr(memory, "free_bytes", lambda device: text.total(0) // 2)
    code, said = run("train", "denoiser", *words, "--steps", 1, "--frozen", published)
    assert code == 1 and "one row alone takes" in said and "--use_fsdp" in said
    coder = stage_need(preset, "autoencoder", torch.float32, 6)
    monkeypatch.setattr(memory, "free_bytes", lambda device: coder.total(1) + coder.data + 1)
    code, said = run("train", "autoencoder", *words, "--steps", 1)
    assert code == 1 and "what fits: --batch 1" in said
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_pieces_and_teams_need_less_at_once():
    class Pair(recipe.ALONE.__class__):
        size = 2

    given = {"folder": None, "preset": tiny_sd(), "data": "x", "batch_size": 12}
    assert rows_at_once("denoiser", TrainingOptions(**given)) == 12
    assert rows_at_once("denoiser", TrainingOptions(**given, accumulate=5)) == 3
    assert rows_at_once("denoiser", TrainingOptions(**given, accumulate=3, team=Pair())) == 2
    assert rows_at_once("autoencoder", TrainingOptions(**given, accumulate=3)) == 12


# ---------------------------------------------------------------- what does not go together


@pytest.mark.parametrize(
    "words, code, told",
    [
        (["denoiser", "--preset", "midle"], 1, ("midle", "did you mean middle")),
        (["denoiser", "--preset", "middle", "--condition", "layout"], 2, ("--preset", "condition")),
        (["denoiser", "--frozen", "x"], 2, ("--frozen", "--preset")),
        (["denoiser", "--dry-run"], 2, ("--dry-run", "--preset")),
        (["all", "--preset", "middle", "--dry-run"], 2, ("--dry-run", "all")),
        (["clip", "--preset", "sd_v1", "--steps", "1"], 2, ("sd_v1", "autoencoder", "clip")),
        (["all", "--preset", "celebahq", "--minutes", "1"], 2, ("celebahq", "all")),
        (["denoiser", "--preset", "sd_v1", "--steps", "1"], 2, ("sd_v1", "--data")),
        (["denoiser", "--preset", "sd_v1", "--data", "."], 2, ("--steps", "1,171,000")),
        (["denoiser", "--preset", "celebahq", "--data", ".", "--steps", "1", "--frozen", "x"], 2, ("--frozen",)),
        (["autoencoder", "--preset", "sd_v1", "--data", ".", "--steps", "1", "--frozen", "x"], 2, ("--frozen",)),
        (["denoiser", "--preset", "tiny_sd", "--data", "nowhere", "--steps", "1"], 1, ("nowhere", "no such folder")),
        (["denoiser", "--preset", "tiny_sd", "--data", "MINE", "--steps", "1"], 1, ("--frozen", "text encoder")),
        (["denoiser", "--preset", "tiny_faces", "--data", "MINE", "--steps", "1"], 1, ("autoencoder.safetensors",)),
        (["denoiser", "--preset", "tiny_sd", "--data", "MINE", "--steps", "1", "--frozen", "WEIGHTS"], 1,
         ("another text encoder", "tiny_sd")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_combinations_are_refused(run, mine, tmp_path, words, code, told):
    places = {"MINE": str(mine), "WEIGHTS": str(shipped_folder())}
    found, said = run("train", *(places.get(word, word) for word in words), "--out", "out", *FLAGS)
    assert found == code, said
    assert all(word in said for word in told), said
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_an_autoencoder_of_another_size_is_refused(run, mine, published, tmp_path):
    words = ("--data", mine, "--out", "out", *FLAGS)
    assert run("train", "autoencoder", "--preset", "tiny_faces", *words, "--steps", 1)[0] == 0
    code, said = run("train", "denoiser", "--preset", "tiny_sd", *words, "--steps", 1, "--frozen", published)
    assert code == 1 and "autoencoder is of another size" in said


def test_a_dry_run_shows_the_plan_and_writes_nothing(run, tmp_path):
    code, said = run("train", "denoiser", "--preset", "celebahq", "--dry-run", "--precision", "float32", "--out", "out")
    assert code == 0, said
    for word in ("274,056,163", "48 rows", "9.6e-05", "A100-days", "14.4 V100-days", "5.5 GB"):
        assert word in said, said
    assert not (tmp_path / "out").exists()
