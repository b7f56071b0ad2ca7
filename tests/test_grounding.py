"""Attention maps against true masks: scores with known answers, cases from real scenes, and the whole measurement."""

import json

import pytest
import torch
from tiny import make_pipeline, save_folder

from ldm_tutor.data.scenes.datasets import render_scenes
from ldm_tutor.errors import ConfigError, ShapeError
from ldm_tutor.evaluation import evaluate_grounding
from ldm_tutor.metrics import grounding
from ldm_tutor.metrics.grounding import auc, best_iou, centre_prior, find_cases, points_at, word_fields, word_places

MASK = torch.zeros(4, 4, dtype=torch.bool)
MASK[1:3, 1:3] = True


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


def test_a_perfect_an_opposite_and_an_empty_field():
    fields = torch.stack([MASK.float(), -MASK.float(), torch.zeros(4, 4)])
    assert auc(fields, MASK).tolist() == [1.0, 0.0, 0.5]
    assert best_iou(fields, MASK).tolist() == [1.0, 0.25, 0.25]
    assert points_at(fields, MASK).tolist() == [True, False, False]


def test_against_counting_by_hand():
    generator = torch.Generator().manual_seed(0)
    fields = torch.randint(0, 4, (5, 4, 4), generator=generator).float()  # many ties
    inside, outside = fields[:, MASK], fields[:, ~MASK]
    pairs = inside[:, :, None] - outside[:, None]
    by_hand = ((pairs > 0).float() + 0.5 * (pairs == 0)).mean(dim=(1, 2))
    assert torch.allclose(auc(fields, MASK), by_hand)
    for field, got in zip(fields, best_iou(fields, MASK), strict=True):
        cuts = [field >= level for level in field.unique()]
        assert float(got) == pytest.approx(max(float((cut & MASK).sum() / (cut | MASK).sum()) for cut in cuts))


def test_scores_know_order_only():
    field = torch.randn(1, 4, 4)
    for score in (auc, best_iou, points_at):
        assert torch.equal(score(field, MASK), score(3 * field + 7, MASK))


def test_the_centre_prior_is_largest_in_the_middle():
    prior = centre_prior(5, 7)
    assert prior.shape == (5, 7) and int(prior.argmax()) == 2 * 7 + 3
    assert torch.allclose(prior, prior.flip(0)) and torch.allclose(prior, prior.flip(1))


@pytest.mark.parametrize("score", [auc, best_iou, points_at])
def test_bad_input_is_said(score):
    with pytest.raises(ShapeError, match="truth values"):
        score(torch.zeros(1, 4, 4), MASK.float())
    with pytest.raises(ShapeError):
        score(torch.zeros(1, 5, 4), MASK)
    for mask in (torch.zeros(4, 4).bool(), torch.ones(4, 4).bool()):
        with pytest.raises(ConfigError, match="some, and not all"):
            score(torch.zeros(1, 4, 4), mask)


def test_words_and_their_places(pipe):
    sentence = "a red cat and a zebra"
    places = dict(grounding.sentence_words(pipe.tokenizer, sentence))
    assert places["red"] == (2,) and places["cat"] == (3,)
    assert places["zebra"][0] == 6 and len(places["zebra"]) == len(pipe.tokenizer.pieces(sentence)) - 5
    assert word_places(pipe.tokenizer, sentence, "a") == (1,)
    assert word_places(pipe.tokenizer, sentence, "dog") == ()


def test_cases_are_the_objects_that_are_named_once(pipe):
    scenes = render_scenes(60, "test", with_masks=True)
    cases = find_cases(pipe.tokenizer, scenes)
    assert len(cases) > 50
    for case in cases:
        tokens = pipe.tokenizer([scenes.captions[case.row]])[0]
        assert pipe.tokenizer.decode(tokens[list(case.tokens)].tolist()) == case.kind
        assert not set(case.tokens) & set(case.others) and case.others
        kinds = [each.kind for each in scenes.scenes[case.row].objects]
        assert torch.equal(case.mask, scenes.foreground[case.row] == kinds.index(case.kind) + 1)
    with pytest.raises(ConfigError, match="with_masks"):
        find_cases(pipe.tokenizer, render_scenes(1, "test"))


def test_looking_and_fields(pipe):
    noise = torch.randn(2, *pipe.config.latent_shape)
    records = grounding.look(pipe.unet, pipe.embed(["a cat", "a dog"]), 0 * noise, noise, pipe.schedule, [100, 900])
    assert len(records) == 2 * len([site for site in pipe.unet.sites() if site.kind == "cross"])
    assert {record.call.info.t for record in records} == {100, 900}
    fields = word_fields(records, 1, [2], (64, 64))
    assert fields.shape == (len(records), 2, 64, 64)
    both = word_fields(records, 1, [2, 3], (64, 64))
    assert torch.allclose(both, fields + word_fields(records, 1, [3], (64, 64)), atol=1e-5)


def test_the_untrained_network_is_the_same_each_time(pipe):
    one, other = (grounding.untrained_like(pipe.unet, 3).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def figures(report):
    for entry in report.values():
        yield from [entry] if "value" in entry else figures(entry)


def test_the_whole_measurement(pipe):
    report = evaluate_grounding(pipe, num=20, times=(100, 800), batch_size=8)
    again = evaluate_grounding(pipe, num=20, times=(100, 800), batch_size=8)
    assert report == again
    for part in (report, report["another_word"], report["centre_prior"], report["untrained"]):
        for name in ("pointing_accuracy", "mean_auc", "mean_iou"):
            assert 0 <= part[name]["value"] <= 1 and part[name]["interval"] and part[name]["num"] > 15
    assert set(report["mean_auc_by_t"]) == {"100", "800"}
    assert set(report["mean_auc_by_layer"]) == {site.name for site in pipe.unet.sites() if site.kind == "cross"}
    assert len({each["num"] for each in figures(report)}) == 1
    assert 0.35 < report["mean_auc"]["value"] < 0.65  # random weights know nothing
    assert report["centre_prior"]["mean_auc"]["value"] > 0.7


def test_no_case_is_said():
    with pytest.raises(ConfigError, match="more scenes"):
        grounding.Tally().report()


def test_the_command(tmp_path, capsys):
    from ldm_tutor.cli.evaluate import evaluate

    folder = tmp_path / "tiny"
    folder.mkdir()
    save_folder(folder)
    evaluate("grounding", num=16, weights=folder, device="cpu", json=tmp_path / "result.json")
    assert "another_word.pointing_accuracy" in capsys.readouterr().out
    kept = json.loads((tmp_path / "result.json").read_text())
    assert kept["command"].startswith("ldm-tutor evaluate grounding --num 16 --seed 0")
    assert kept["figures"]["mean_auc"]["num"] > 10
