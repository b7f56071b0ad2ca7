"""The pipeline and the evaluation on a model with random weights: everything but beauty can be tested on it."""

import dataclasses
import json

import pytest
import torch

from ldm_tutor.attention_maps.plan import Change
from ldm_tutor.config import FOREIGN_DRAWING, DrawingConfig
from ldm_tutor.errors import ConfigError, PromptError, ShapeError, WeightsError
from ldm_tutor.evaluation import evaluate_autoencoder, evaluate_clip, evaluate_judge, evaluate_pictures, load_judge
from ldm_tutor.pipeline import load_pipeline
from ldm_tutor.weights.files import load_model, save_model

SENTENCE = "a small red cat at night"


@pytest.fixture(scope="module")
def pipe(tiny_folder):
    return load_pipeline(tiny_folder)


def test_one_seed_one_picture_alone_and_in_any_batch(pipe):
    sentences = [SENTENCE, "a blue ball", "two green cars"]
    together = pipe.draw(sentences, [5, 6, 7], num_steps=3)
    assert together.shape == (3, 3, 64, 64)
    assert together.abs().max() <= 1
    for i, sentence in enumerate(sentences):
        alone = pipe.draw([sentence], [5 + i], num_steps=3)
        assert (alone[0] - together[i]).abs().max() < 1e-3
    assert (pipe.draw([SENTENCE], [6], num_steps=3) - together[:1]).abs().max() > 1e-2


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm++"])
def test_every_sampler_draws_the_same_picture_twice(pipe, sampler):
    first = pipe.draw([SENTENCE], [1], num_steps=3, sampler=sampler)
    assert torch.equal(first, pipe.draw([SENTENCE], [1], num_steps=3, sampler=sampler))


def test_what_is_not_said_is_the_models_own_way(pipe):
    given, few = ([SENTENCE], [1]), {"num_steps": 3}
    assert pipe.drawing == DrawingConfig()
    usual = pipe.draw(*given, **few)
    assert torch.equal(usual, pipe.draw(*given, **few, sampler="ddpm", guidance=2.0))
    other = dataclasses.replace(pipe, drawing=FOREIGN_DRAWING)
    assert torch.equal(other.draw(*given, **few), pipe.draw(*given, **few, sampler="dpm++", guidance=4.0))
    assert not torch.equal(other.draw(*given, **few), usual)
    change = Change(source=SENTENCE, target="a small blue cat at night", seed=1)
    assert torch.allclose(pipe.edit(change, **few)[0], usual[0], atol=1e-3)


def test_steps_can_be_watched_and_end_where_draw_ends(pipe):
    states = list(pipe.steps([SENTENCE], [2], num_steps=4))
    assert [state.step for state in states] == [0, 1, 2, 3]
    assert torch.equal(pipe.decode(states[-1].latents), pipe.draw([SENTENCE], [2], num_steps=4))


def test_a_half_run_goes_on_to_the_same_picture(pipe):
    states = list(pipe.steps([SENTENCE], [2], num_steps=4))
    rest = list(pipe.steps([SENTENCE], [2], num_steps=4, start=states[1]))
    assert torch.equal(rest[-1].latents, states[-1].latents)


def test_watching_does_not_switch_gradients_off_for_the_caller(pipe):
    for _ in pipe.steps([SENTENCE], [2], num_steps=2):
        assert not torch.is_inference_mode_enabled()


def test_guidance_one_ignores_the_negative_text_and_more_does_not(pipe):
    def drawn(guidance, negative):
        return pipe.draw([SENTENCE], [3], num_steps=3, guidance=guidance, negative=[negative])

    assert torch.equal(drawn(1.0, "a red cat"), drawn(1.0, "a blue house in the snow"))
    assert not torch.equal(drawn(3.0, "a red cat"), drawn(3.0, "a blue house in the snow"))


def test_redraw_keeps_at_strength_zero_and_forgets_at_one(pipe):
    picture = torch.rand(1, 3, 64, 64) * 2 - 1
    kept = pipe.redraw(picture, [SENTENCE], [1], strength=0.0)
    assert torch.allclose(kept, pipe.autoencoder(picture).clamp(-1, 1), atol=1e-5)
    assert not torch.allclose(pipe.redraw(picture, [SENTENCE], [1], strength=1.0, num_steps=4), kept, atol=1e-2)
    with pytest.raises(ConfigError, match=r"strength.*1\.5"):
        pipe.redraw(picture, [SENTENCE], [1], strength=1.5)


def test_redraw_takes_other_sides_and_one_picture_for_all_seeds(pipe):
    wide = torch.rand(1, 3, 64, 128) * 2 - 1
    made = pipe.redraw(wide, [SENTENCE] * 2, [1, 2], strength=0.5, num_steps=4)
    assert made.shape == (2, 3, 64, 128) and not torch.equal(made[0], made[1])


@pytest.mark.parametrize(
    ("picture", "seeds", "more", "problem"),
    [
        (torch.zeros(1, 3, 64, 64), [], {"strength": 0}, "at least one"),
        (torch.zeros(1, 3, 64, 64), [1], {"strength": 0, "num_steps": 0}, "num_steps"),
        (torch.zeros(3, 3, 64, 64), [1, 2], {}, "how many; given: 3; expected: 1 or 2"),
        (torch.full((1, 3, 64, 64), 255.0), [1], {}, "pixel values; given: 255"),
        (torch.full((1, 3, 64, 64), float("nan")), [1], {}, "pixel values; given: nan"),
        (torch.zeros(3, 64, 64), [1], {}, "expected: .b, 3, H, W."),
    ],
)
def test_redraw_says_what_cannot_be(pipe, picture, seeds, more, problem):
    with pytest.raises((ConfigError, ShapeError), match=problem):
        pipe.redraw(picture, [SENTENCE] * len(seeds), seeds, **more)


def test_one_text_is_no_list_of_letters(pipe):
    with pytest.raises(PromptError, match="a list of sentences"):
        pipe.embed("cat")
    with pytest.raises(PromptError, match="negative"):
        pipe.draw([SENTENCE], [1], negative="x")
    with pytest.raises(ConfigError, match="start_at; given: 2"):
        next(pipe.steps([SENTENCE], [1], start_at=2))


@pytest.mark.parametrize("prompts", [[""], ["   "], [None], []])
def test_an_empty_request_is_refused(pipe, prompts):
    with pytest.raises((PromptError, ConfigError)):
        pipe.draw(prompts, [0] * len(prompts))


def test_other_bad_requests_say_what_is_wrong(pipe):
    with pytest.raises(PromptError, match="a list of sentences"):
        pipe.draw(SENTENCE, [1])
    with pytest.raises(PromptError, match=r"500 tokens.*room for 30.*first 30 words fit") as caught:
        pipe.draw(["red " * 500], [1])
    assert len(str(caught.value)) < 400
    with pytest.raises(ConfigError, match="one seed"):
        pipe.draw([SENTENCE], [1, 2])
    for settings in ({"num_steps": 0}, {"num_steps": 1001}, {"guidance": float("nan")}, {"sampler": "magic"}):
        with pytest.raises(ConfigError):
            pipe.draw([SENTENCE], [1], **settings)


def test_words_it_never_saw_are_drawn_through_their_pieces(pipe):
    assert pipe.draw(["a zebra by the river"], [1], num_steps=2).shape == (1, 3, 64, 64)


def test_a_folder_whose_parts_do_not_fit_is_refused(tiny_folder, tmp_path):
    for path in tiny_folder.rglob("*"):
        if path.is_file():
            target = tmp_path / path.relative_to(tiny_folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    unet = load_model(tmp_path / "unet.safetensors", "unet")
    narrow = dataclasses.replace(unet.config, context_dim=64)
    save_model(tmp_path / "unet.safetensors", type(unet)(narrow), kind="unet", config=narrow)
    with pytest.raises(WeightsError, match="do not fit together"):
        load_pipeline(tmp_path)
    (tmp_path / "unet.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"unet\.safetensors"):
        load_pipeline(tmp_path)


def test_the_report_has_every_figure_in_one_form(pipe, tiny_folder):
    judge = load_judge(tiny_folder)
    report = evaluate_pictures(pipe, judge, num=8, num_reference=40, num_steps=2)
    json.dumps(report, allow_nan=False)
    overall = report["attribute_accuracy"]["all"]
    assert set(overall) == {"value", "interval", "num"}
    assert overall["num"] == 8
    assert {"one_object", "object", "count"} <= set(report["attribute_accuracy"])
    for name in ("fid", "fid_floor", "seconds_per_picture", "ceiling_real", "ceiling_decoded"):
        assert set(report[name]) == {"value", "interval", "num"}
    assert report["fid"]["value"] > report["fid_floor"]["value"]  # random weights draw nothing like a scene


def test_the_other_reports(pipe, tiny_folder):
    judge = load_judge(tiny_folder)
    assert evaluate_autoencoder(pipe, judge, num=8)["psnr"]["num"] == 8
    clip = evaluate_clip(pipe.clip, pipe.tokenizer, num=200)
    assert clip["picture_to_text"]["num"] % 64 == 0
    assert clip["picture_to_text"]["value"] < 0.5  # random weights cannot tell
    for name in ("rearranged_twins", "exchanged_twins", "exchanged_twins_of_unseen_pairs"):
        low, high = clip[name]["interval"]
        assert low < 0.5 < high and clip[name]["num"] > 150  # nor these
    assert clip["nouns"]["num"] > 200 and clip["nouns_of_unseen_pairs"]["num"] >= 200  # each scene there has one
    assert set(evaluate_judge(judge, num=8)) == {"test", "unseen", "three"}
