"""Measuring edits: the cases, the scores with known answers, and the whole command on a tiny model."""

import json

import pytest
import torch
from tiny import make_pipeline, save_folder

from ldm_tutor.config import JudgeConfig
from ldm_tutor.data.scenes.words import parse
from ldm_tutor.data.scenes.world import COLORS, HELD_OUT
from ldm_tutor.errors import ConfigError
from ldm_tutor.evaluation import evaluate_editing
from ldm_tutor.metrics import editing
from ldm_tutor.metrics.editing import CLEAN, EDITS, FACTORS, background_psnr, cases, color_margin, is_rising, outside
from ldm_tutor.metrics.reading import Reading, SeenThing
from ldm_tutor.models.judge import Judge
from ldm_tutor.models.tokenizer import split_words


@pytest.fixture(scope="module")
def judge():
    torch.manual_seed(0)
    return Judge(JudgeConfig(channels=8)).eval()


def thing(kind="cat", color="red", box=(0.25, 0.25, 0.5, 0.5), score=0.9):
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return SeenThing(kind=kind, color=color, size="medium", x=x, y=y, box=box, score=score)


# --- cases


@pytest.mark.parametrize("edit", EDITS)
def test_cases_are_the_same_each_time_and_differ_by_seed(edit):
    made = cases(edit, 12, 3)
    assert made == cases(edit, 12, 3) and made[:5] == cases(edit, 5, 3) and made != cases(edit, 12, 4)
    assert [each.changes["edit" if edit != "reweight" else "edit 0"].seed for each in made] == list(range(3, 15))
    for each in made:
        assert len({(change.source, change.seed) for change in each.changes.values()}) == 1
        assert not any(change.is_empty() for change in each.changes.values())


def test_swaps_change_one_word_and_take_turns():
    for number, each in enumerate(cases("swap", 40, 0)):
        change = each.changes["edit"]
        pairs = list(zip(split_words(change.source), split_words(change.target), strict=True))
        assert [pair for pair in pairs if pair[0] != pair[1]] == [(each.old, each.new)]
        assert each.asked == parse(change.target) and each.places == (number % 2 == 1)
        kinds = [(thing.kind, thing.color) for thing in each.asked.objects]
        assert len(dict(kinds)) == len(kinds) and not HELD_OUT & {pair for pair in kinds if pair[0] == each.new}


def test_refinements_add_one_attribute():
    seen = set()
    for each in cases("refine", 60, 0):
        change = each.changes["edit"]
        assert len(split_words(change.target)) > len(split_words(change.source))
        before, after = parse(change.source), parse(change.target)
        assert after == each.asked and before != after
        assert not before.asks_for(each.group) or len(before.objects) > 1
        seen.add(each.group)
    assert seen == {"color", "size", "place", "background"}


def test_reweightings_and_ignored_words_are_in_their_sentences():
    for each in cases("reweight", 20, 0):
        assert set(each.changes) == {f"{way} {f:g}" for way in ("edit", "token") for f in FACTORS if f != 1}
        ((word, factor),) = each.changes["token 2"].weights.items()
        assert word == each.asked.objects[0].color and factor == 2 and not each.changes["token 2"].deep
    groups = [each.group for each in cases("ignore", 60, 0)]
    assert groups[::2] == ["color"] * 30 and {"size", "background"} <= set(groups)
    for each in cases("ignore", 60, 0):
        (word,) = each.changes["edit"].ignore
        assert split_words(each.changes["edit"].source).count(word) == 1


# --- scores


def test_outside_of_boxes():
    mask = outside([(0.25, 0.25, 0.5, 0.5)], 64)
    assert not mask[14:35, 14:35].any() and int((~mask).sum()) == 21 * 21
    assert outside([(-1.0, -1.0, 2.0, 2.0)], 64).sum() == 0 and outside([], 8).all()


def test_background_counts_the_background_alone():
    before, mask = torch.zeros(1, 3, 64, 64), outside([(0.25, 0.25, 0.5, 0.5)], 64)
    after = before.clone()
    after[..., ~mask] = 1.0
    assert background_psnr(before, after, mask) == CLEAN
    after[..., mask] = 0.2  # a tenth of the range
    assert background_psnr(before, after, mask) == pytest.approx(20, abs=1e-3)


def test_rising():
    assert is_rising([0, 1, 1, 2]) and not is_rising([0, 1, 0.99]) and is_rising([0, 1, 0.99], 0.02)


def test_the_margin_is_the_logit_less_the_best_other(judge):
    pictures = torch.randn(2, 3, 64, 64)
    logits = judge(pictures).color[:, :, 4, 8]
    made = color_margin(judge, pictures, [(0.51, 0.26)] * 2, ["red", "blue"])
    for row, color, margin in zip(logits, ("red", "blue"), made, strict=True):
        others = [float(row[k]) for k in range(len(COLORS)) if COLORS[k] != color]
        assert margin == pytest.approx(float(row[COLORS.index(color)]) - max(others), abs=1e-4)
    larger = pictures.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert color_margin(judge, larger, [(0.51, 0.26)] * 2, ["red", "blue"]) == pytest.approx(made, abs=1e-4)


def test_a_swap_is_scored_by_what_is_read(monkeypatch, judge):
    case = next(each for each in cases("swap", 40, 0) if len(each.asked.objects) == 1 and each.asked.objects[0].color)
    color, background = case.asked.objects[0].color, case.asked.background or "day"
    size = case.asked.objects[0].size or "medium"

    def read(kind, **more):
        seen = SeenThing(**{**vars(thing(kind, color)), "size": size, **more})
        return [Reading((seen,), background)]

    pictures = torch.zeros(1, 3, 64, 64)
    answers = iter([read(case.old), read(case.new), read(case.new, color="none"), read(case.old)])
    monkeypatch.setattr(editing, "read_pictures", lambda judge, pictures: next(answers))
    tally = editing.Tally(judge)
    tally.add([case], pictures, {"edit": pictures, "no_self": pictures, "reprompt": pictures + 0.2})
    report = tally.report()
    name = "swap_named_places" if case.places else "swap"
    assert report[f"{name}_new_object"]["value"] == 1 and report[f"{name}_reprompt_new_object"]["value"] == 0
    assert report[f"{name}_old_gone"]["value"] == 1 and report[f"{name}_reprompt_old_gone"]["value"] == 0
    assert report[f"{name}_no_self_rest_kept"]["value"] == 0
    assert report[f"{name}_rest_kept"]["value"] == (0 if case.places else 1)
    assert report[f"{name}_background_psnr_gain_db"]["value"] == pytest.approx(CLEAN - 20, abs=1e-3)


# --- the whole


def test_the_whole_measurement(judge):
    pipe = make_pipeline()
    report = evaluate_editing(pipe, judge, num=8, seed=0, num_steps=2, batch_size=4)
    assert report.pop("settings") == {"num": 8, "seed": 0, "num_steps": 2}
    for way in ("", "_no_self", "_reprompt"):
        assert report[f"swap{way}_new_object"]["num"] == report[f"swap_named_places{way}_new_object"]["num"] == 4
    assert report["refine_new_attribute"]["num"] == 8 and report["ignore.color.token"]["num"] == 4
    assert all(set(figure) == {"value", "interval", "num"} for figure in report.values())


def test_what_is_kept_for_the_lesson(tmp_path, judge):
    from ldm_tutor.lessons import lesson_09_kit as kit

    report = evaluate_editing(make_pipeline(), judge, num=8, seed=0, num_steps=1, batch_size=4)
    figure = {"value": 0.5, "interval": [0.4, 0.6], "num": 8}
    names = [f"swap{group}{way}_background_psnr" for group in ("", "_named_places") for way in kit.WAYS.values()]
    names += [f"reweight{way}_color.{factor:g}" for way in ("", "_token") for factor in FACTORS]
    figures = report | dict.fromkeys(names, figure)  # a judge without training finds no boxes
    made, kept = tmp_path / "made.json", tmp_path / "kept" / "editing.json"
    made.write_text(json.dumps({"command": "c", "settings": figures.pop("settings"), "figures": figures}))
    kit.keep(made, kept)
    assert kit.load_measured(kept) == figures and "weights" in json.loads(kept.read_text())
    assert len(kit.measured_figure(figures).axes) == 4
    for text in ("", "{}", '{"figures": {}}', '{"figures": {"swap_new_object": {"num": 0}}}'):
        kept.write_text(text)
        with pytest.raises(ConfigError, match="measure them"):
            kit.load_measured(kept)


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    from ldm_tutor.cli.evaluate import evaluate

    folder = tmp_path / "tiny"
    folder.mkdir()
    save_folder(folder)
    evaluate("editing", num=8, steps=2, weights=folder, device="cpu", json=tmp_path / "result.json")
    assert "swap_new_object" in capsys.readouterr().out
    kept = json.loads((tmp_path / "result.json").read_text())
    assert kept["command"].startswith("ldm-tutor evaluate editing --num 8 --seed 0 --steps 2")
    assert kept["figures"]["swap_rest_kept"]["num"] == 4
