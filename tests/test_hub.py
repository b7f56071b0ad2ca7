"""Models by name: the real hub code, offline, against a download that is there and against one that is not."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from test_parity import randomize
from tiny import CONFIG, make_pipeline

from ldm_tutor.errors import WeightsError
from ldm_tutor.models.clip import Clip
from ldm_tutor.weights import hub
from ldm_tutor.weights.clip_folder import export_clip, load_clip, normalized
from ldm_tutor.weights.compvis import save_compvis
from ldm_tutor.weights.diffusers_folder import export_diffusers, read_json, write_json
from ldm_tutor.weights.sources import is_foreign, open_model

PROMPTS = ["a large red cat on grass"]


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


@pytest.fixture(scope="module")
def folder(pipe, tmp_path_factory):
    parts = {"tokenizer": pipe.tokenizer, "text_encoder": pipe.text_encoder, "unet": pipe.unet}
    return export_diffusers(
        tmp_path_factory.mktemp("folder"), **parts, autoencoder=pipe.autoencoder, schedule=pipe.schedule.config,
        picture_size=64,
    )  # fmt: skip


def same(one, other):
    one, other = one.state_dict(), other.state_dict()
    return all(torch.equal(one[name], other[name]) for name in one) and list(one) == list(other)


def test_what_a_name_on_the_hub_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    names = ["owner/name", "CompVis/stable-diffusion-v1-4", Path("owner/name")]
    others = ["name", "a/b/c", "/owner/name", "./name", "~/name", "runs/new", "models/sd.ckpt", "owner/", "../x/y", ""]
    assert all(map(hub.is_hub_name, names))
    assert not any(map(hub.is_hub_name, others))
    assert hub.local_place("runs/new") == Path("runs/new")


def test_a_name_without_a_network_is_a_clear_error():
    pytest.importorskip("huggingface_hub")
    for open_it in (open_model, load_clip):
        with pytest.raises(WeightsError) as error:
            open_it("ldm-tutor-tests/no-such-model")
        assert "ldm-tutor-tests/no-such-model: no folder here, and not to be had" in str(error.value)
        assert "a network and the name of a model there, an earlier download of it, or a path" in str(error.value)


def test_an_earlier_download_is_found_without_a_network(folder, pipe, tmp_path, monkeypatch):
    """The hub's own cache: snapshots by their revision, and what `main` was."""
    pytest.importorskip("huggingface_hub")
    import huggingface_hub

    revision = "0123456789abcdef0123456789abcdef01234567"
    stored = tmp_path / "models--owner--name"
    shutil.copytree(folder, stored / "snapshots" / revision)
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text(revision)
    real, asked = huggingface_hub.snapshot_download, []

    def offline(name, **arguments):
        asked.append((name, arguments))
        return real(name, **arguments, cache_dir=tmp_path, local_files_only=True)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    parts = open_model("owner/name")
    assert same(parts.unet, pipe.unet) and torch.equal(parts.tokenizer(PROMPTS), pipe.tokenizer(PROMPTS))
    assert asked[0][0] == "owner/name"


def test_pickles_are_not_even_downloaded(folder):
    from huggingface_hub.utils import filter_repo_objects

    there = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    extra = [
        "v1-5-pruned.ckpt", "unet/diffusion_pytorch_model.bin", "vae/diffusion_pytorch_model.fp16.safetensors",
        "v1-5-pruned.safetensors", "safety_checker/pytorch_model.bin", "text_encoder/flax_model.msgpack",
    ]  # fmt: skip
    shards = ["unet/diffusion_pytorch_model-00001-of-00002.safetensors", "model-00001-of-00003.safetensors"]
    wanted = set(filter_repo_objects([*there, *extra, *shards], allow_patterns=list(hub.WANTED)))
    assert wanted == {*there, *shards}


def test_a_model_from_wherever_it_is(folder, pipe, tiny_folder, tmp_path):
    single = save_compvis(
        tmp_path / "x.safetensors", unet=pipe.unet, autoencoder=pipe.autoencoder, condition=pipe.text_encoder,
        schedule=pipe.schedule.config,
    )  # fmt: skip
    assert [is_foreign(place) for place in (folder, single, "owner/name")] == [True] * 3
    ours = (tiny_folder, tiny_folder / "unet.safetensors", tmp_path, tmp_path / "missing.ckpt", "nowhere")
    assert [is_foreign(place) for place in ours] == [False] * 5
    for parts in (open_model(folder), open_model(single, model=CONFIG, tokenizer=folder)):
        for name in ("unet", "autoencoder", "text_encoder"):
            assert same(getattr(parts, name), getattr(pipe, name))
        assert torch.equal(parts.tokenizer(PROMPTS), pipe.tokenizer(PROMPTS))
        assert parts.picture_size == 64
    for arguments in ({}, {"model": CONFIG}, {"tokenizer": folder}):
        with pytest.raises(WeightsError, match="neither settings nor words"):
            open_model(single, **arguments)
    with pytest.raises(WeightsError, match=r"no model of another program.*unet\.safetensors.*model_index\.json"):
        open_model(tiny_folder)
    text = dataclasses.replace(CONFIG.clip.text, vocab_size=600)
    small = dataclasses.replace(CONFIG, clip=dataclasses.replace(CONFIG.clip, text=text))
    with pytest.raises(WeightsError, match=r"token_embedding.weight has another shape.*\(768, 16\).*\(600, 16\)"):
        open_model(single, model=small, tokenizer=folder)


# ---------------------------------------------------------------- CLIP


@pytest.fixture
def clip_folder(pipe, tmp_path):
    clip = randomize(Clip(CONFIG.clip, end_id=pipe.tokenizer.end_id))
    return export_clip(tmp_path / "clip", clip, pipe.tokenizer), clip


@torch.no_grad()
def test_transformers_opens_our_clip_and_computes_the_same(clip_folder, pipe):
    transformers = pytest.importorskip("transformers")
    root, clip = clip_folder
    theirs = transformers.CLIPModel.from_pretrained(root, local_files_only=True).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(root, local_files_only=True)
    rows = tokenizer(PROMPTS, padding="max_length", max_length=32)["input_ids"]
    assert rows == pipe.tokenizer(PROMPTS).tolist()
    pictures, tokens = torch.rand(2, 3, 64, 64) * 2 - 1, torch.tensor(rows)
    ours = clip(pictures, tokens)
    assert (ours - theirs(tokens, pictures).logits_per_image).abs().max() / ours.abs().max() < 1e-5


def test_clip_comes_back_from_our_folder_and_from_theirs(clip_folder, pipe, tmp_path):
    transformers = pytest.importorskip("transformers")
    root, clip = clip_folder
    transformers.CLIPModel.from_pretrained(root, local_files_only=True).save_pretrained(tmp_path / "theirs")
    for place, words in ((root, True), (tmp_path / "theirs", False)):
        back = load_clip(place)
        assert back.clip.config == clip.config and back.clip.end_id == clip.end_id and same(back.clip, clip)
        assert (back.tokenizer is not None) == words
    settings = read_json(tmp_path / "theirs" / "config.json")
    settings["text_config"]["eos_token_id"] = 2  # as published: the last token is meant
    write_json(tmp_path / "theirs" / "config.json", settings)
    assert load_clip(tmp_path / "theirs").clip.end_id == CONFIG.clip.text.vocab_size - 1


def test_other_clips_are_refused(clip_folder):
    root, _ = clip_folder
    whole = read_json(root / "config.json")
    for change, words in (
        ({"model_type": "siglip"}, "siglip"),
        ({"projection_dim": 8}, r"text_projection.weight has another shape.*\(16, 16\).*\(8, 16\)"),
        ({"vision_config": whole["vision_config"] | {"hidden_act": "gelu"}}, "hidden_act.*image encoder"),
        ({"vision_config": whole["vision_config"] | {"num_hidden_layers": 2}}, r"layers\.1\..* is missing"),
    ):
        write_json(root / "config.json", whole | change)
        with pytest.raises(WeightsError, match=words):
            load_clip(root)
    (root / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"config\.json"):
        load_clip(root)


def test_pictures_in_units_of_clip_s_training_pictures():
    transformers = pytest.importorskip("transformers")
    processor = transformers.CLIPImageProcessor(do_resize=False, do_center_crop=False)
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    theirs = processor(list(pixels), return_tensors="pt", input_data_format="channels_first")["pixel_values"]
    assert torch.allclose(normalized(pixels.float() / 127.5 - 1), theirs, atol=1e-5)
