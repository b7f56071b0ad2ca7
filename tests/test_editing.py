"""Editing by attention maps: alignment, the taps one by one, local blend, whole edits, errors, and the full size."""

import math

import pytest
import torch
from tiny import make_pipeline

from ldm_tutor.attention_maps.align import (
    align_refinement,
    align_sequences,
    align_swap,
    find_places,
    sentence_words,
    word_places,
)
from ldm_tutor.attention_maps.blend import LocalBlend
from ldm_tutor.attention_maps.edit import Reweight, TakeCross, TakeSelf, check_window, injection_table
from ldm_tutor.attention_maps.ignore import encode_weighted
from ldm_tutor.attention_maps.inversion import ddim_path, null_text
from ldm_tutor.attention_maps.plan import REFINE, SWAP, WEIGH, Change, EditPlan, Injection, align
from ldm_tutor.attention_maps.record import Recorder
from ldm_tutor.attention_maps.watch import chain, watch
from ldm_tutor.config import sd_v1
from ldm_tutor.errors import AttentionTapError, ConfigError, PromptError, ShapeError
from ldm_tutor.models.unet import UNet
from ldm_tutor.nn.attention import Call, CallInfo, Row, Site
from ldm_tutor.sampling.guidance import Guided
from ldm_tutor.sampling.loop import SampleState, sample
from ldm_tutor.schedule import NoiseSchedule

CROSS, SELF = (Site(f"mid.block0.layer0.{kind}", "mid", 1, kind, 2) for kind in ("cross", "self"))
SOURCE, SWAPPED, REFINED = "a red cat at night", "a red dog at night", "a small red cat at night"
NOTHING = Injection(cross=0.0, self_=0.0, threshold=None)


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


def call(step, num=2, site=CROSS, guided=True, grid=(2, 2)):
    rows = tuple(Row(k, conditional=True) for k in range(num))
    free = tuple(Row(k, conditional=False) for k in range(num)) if guided else ()
    return Call(site, grid, CallInfo(step=step, t=500, rows=free + rows))


def maps(b, n=4, m=32, seed=0):
    return torch.randn(b, 2, n, m, generator=torch.Generator().manual_seed(seed)).softmax(-1)


# --- alignment


def test_places_of_words_and_phrases(pipe):
    t = pipe.tokenizer
    assert find_places(t, SOURCE, "cat") == word_places(t, SOURCE, "cat") == (3,)
    assert find_places(t, SOURCE, "at night") == (4, 5)
    assert find_places(t, "a red cat and a blue cat", "cat") == (3, 7)
    for wrong in ("zebra", "", "night at", 3):
        with pytest.raises(PromptError, match=r"given.*expected: one of \['a', 'red', 'cat', 'at', 'night'\]"):
            find_places(t, SOURCE, wrong)


def test_a_swap_of_equal_tokens_is_one_to_one(pipe):
    made = align_swap(pipe.tokenizer, SOURCE, SWAPPED)
    assert torch.equal(made.mapper, torch.eye(32)) and not made.new.any()
    assert made.source_words == made.target_words == (3,)


def test_a_swap_of_other_token_counts_shares_and_moves_the_rest(pipe):
    strange = "a red zebra at night"
    k = len(dict(sentence_words(pipe.tokenizer, strange))["zebra"])
    assert k > 1
    made = align_swap(pipe.tokenizer, SOURCE, strange)
    assert made.target_words == tuple(range(3, 3 + k))
    assert torch.allclose(made.mapper[3, 3 : 3 + k], torch.full((k,), 1 / k))
    assert made.mapper[4, 3 + k] == made.mapper[5, 4 + k] == 1  # "at night" keeps its own columns
    probs = maps(1)
    assert torch.allclose((probs @ made.mapper).sum(-1), torch.ones(1, 2, 4), atol=1e-5)
    back = align_swap(pipe.tokenizer, strange, SOURCE)
    assert torch.allclose(back.mapper[3 : 3 + k, 3], torch.ones(k))
    assert torch.allclose((probs @ back.mapper).sum(-1), torch.ones(1, 2, 4), atol=1e-5)


def test_a_swap_of_other_word_counts_is_refused(pipe):
    with pytest.raises(PromptError, match=r"5 words in .*6 in .*refine"):
        align_swap(pipe.tokenizer, SOURCE, REFINED)


def test_a_refinement_matches_what_both_say(pipe):
    made = align_refinement(pipe.tokenizer, SOURCE, REFINED)
    assert made.new.nonzero().flatten().tolist() == [2] and made.target_words == (2,) and made.source_words == ()
    probs = maps(1)
    taken = probs @ made.mapper
    assert torch.equal(taken[..., 3], probs[..., 2]) and torch.equal(taken[..., 6], probs[..., 5])
    assert torch.equal(taken[..., 7], probs[..., 6]) and not taken[..., 2].any()
    back = align_refinement(pipe.tokenizer, REFINED, SOURCE)
    assert back.source_words == (2,) and back.target_words == () and back.new.nonzero().flatten().tolist() == [31]
    with pytest.raises(PromptError, match="cannot be aligned"):
        align_refinement(pipe.tokenizer, "a cat", "two dogs")


@pytest.mark.parametrize(
    ("first", "second", "length"), [("abcd", "abxcd", 4), ("abc", "", 0), ("aab", "ab", 2), ("xay", "zaw", 1)]
)
def test_sequences(first, second, length):
    pairs = align_sequences(first, second)
    assert len(pairs) == length and all(first[i] == second[j] for i, j in pairs)
    assert all(a < c and b < d for (a, b), (c, d) in zip(pairs, pairs[1:]))  # noqa: B905, RUF007


def test_sequences_are_aligned_best():
    from itertools import combinations

    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        first, second = (torch.randint(0, 3, (n,), generator=generator).tolist() for n in (5, 4))
        common = max(
            k
            for k in range(5)
            if {tuple(c) for c in combinations(first, k)} & {tuple(c) for c in combinations(second, k)}
        )
        assert len(align_sequences(first, second)) == common


def test_the_method_is_chosen_by_the_number_of_words(pipe):
    assert torch.equal(align(pipe.tokenizer, SOURCE, SWAPPED).mapper, torch.eye(32))
    assert align(pipe.tokenizer, SOURCE, REFINED).new.any()
    assert align(pipe.tokenizer, SOURCE, SWAPPED, "refine").new[3]


# --- schedules


def test_the_table_has_a_row_more_than_there_are_steps():
    table = injection_table(10, 4, 0.8, {2: 0.4, 3: (0.5, 1.0)})
    assert table.shape == (11, 4)
    assert table[:, 0].tolist() == [1.0] * 8 + [0.0] * 3  # int(0.8 * 11)
    assert table[:, 2].sum() == 4 and table[:5, 3].sum() == 0 and table[5:, 3].sum() == 6
    assert injection_table(10, 2, 0.0).sum() == 0 and injection_table(10, 2, 1.0).sum() == 22
    with pytest.raises(ConfigError, match="0 to 3"):
        injection_table(10, 4, 0.8, {4: 0.1})


@pytest.mark.parametrize("window", [1.2, -0.1, (0.5, 0.2), "0.8", None, True, (0.1,), math.nan])
def test_a_window_is_a_part_of_the_run(window):
    with pytest.raises(ConfigError, match="share 0 to 1"):
        check_window(window, "here")


# --- the taps


def test_taking_over_touches_the_conditional_target_row_alone(pipe):
    alignment = align_swap(pipe.tokenizer, SOURCE, SWAPPED)
    tap = TakeCross([alignment], [injection_table(10, 32, 0.5, {3: 0.0})])
    probs = maps(4)
    before, made = probs.clone(), tap(call(0), probs)
    assert torch.equal(probs, before) and torch.equal(made[:3], probs[:3])
    assert torch.equal(made[3, ..., 3], probs[3, ..., 3])  # this word's window is empty
    others = [k for k in range(32) if k != 3]
    assert torch.equal(made[3][..., others], probs[2][..., others])
    assert tap(call(6), probs) is None and tap(call(0, site=SELF), probs) is None


def test_new_words_keep_their_own_map(pipe):
    alignment = align_refinement(pipe.tokenizer, SOURCE, REFINED)
    probs = maps(2)
    made = TakeCross([alignment], [injection_table(10, 32, 1.0)])(call(9, guided=False), probs)
    assert torch.equal(made[1, ..., 2], probs[1, ..., 2]) and torch.equal(made[1, ..., 4], probs[0, ..., 3])


def test_self_attention_is_taken_within_its_window_and_size():
    probs, small = maps(4, m=4), call(3, site=SELF)
    tap = TakeSelf(10, [0.4])
    made = tap(small, probs)
    assert torch.equal(made[:3], probs[:3]) and torch.equal(made[3], probs[2])
    assert tap(call(4, site=SELF), probs) is None and tap(call(0), probs) is None
    assert TakeSelf(10, [0.4], largest=3)(small, probs) is None
    two = TakeSelf(10, [0.4, (0.5, 1.0)], [(0, 1), (2, 3)])
    six = maps(4, m=4)
    assert torch.equal(two(call(0, 4, SELF, guided=False), six)[3], six[3])
    assert torch.equal(two(call(5, 4, SELF, guided=False), six)[3], six[2])


def test_factors_multiply_columns_and_nothing_is_divided():
    probs = maps(4)
    made = Reweight([{}, {3: -2.0, 5: 0}])(call(0), probs)
    assert torch.equal(made[:3], probs[:3]) and torch.equal(made[3, ..., 3], -2 * probs[3, ..., 3])
    assert not made[3, ..., 5].any() and torch.equal(made[3, ..., 4], probs[3, ..., 4])
    assert Reweight([{}, {}])(call(0), probs) is None and Reweight([{3: 2.0}])(call(0, site=SELF), probs) is None


@pytest.mark.parametrize("factor", ["2", None, math.nan, math.inf, True, [1]])
def test_a_factor_is_a_number(factor):
    with pytest.raises(ConfigError, match="the factor of 3"):
        Reweight([{3: factor}])
    with pytest.raises(ConfigError, match="the factor of 'red'"):
        Change(source=SOURCE, weights={"red": factor})


def test_nothing_is_guessed(pipe):
    alignment, table = align_swap(pipe.tokenizer, SOURCE, SWAPPED), injection_table(10, 32, 1.0)
    probs = maps(4)
    for tap in (TakeCross([alignment], [table]), Reweight([{}, {3: 2.0}])):
        with pytest.raises(AttentionTapError, match="was not declared"):
            tap(Call(CROSS, (2, 2), CallInfo(step=0)), probs)
    with pytest.raises(AttentionTapError, match="running step"):
        TakeCross([alignment], [table])(Call(CROSS, (2, 2), CallInfo(rows=call(0).info.rows)), probs)
    with pytest.raises(AttentionTapError, match="not in the batch"):
        TakeCross([alignment], [table], [(0, 5)])(call(0), probs)
    with pytest.raises(AttentionTapError, match="tokens"):
        TakeCross([alignment], [table])(call(0), maps(4, m=8))
    with pytest.raises(AttentionTapError, match="that are in the batch"):
        Reweight([{}, {40: 2.0}])(call(0), probs)


@pytest.mark.parametrize("pairs", [[], [(0, 1), (0, 1)], [(0, 1), (1, 2)]])
def test_pairs_that_cannot_be(pairs):
    with pytest.raises(ConfigError, match="pairs"):
        TakeSelf(10, [0.4] * len(pairs), pairs)


# --- local blend


def state(step, latents):
    return SampleState(step, 10, 500, 400, latents, latents, latents)


def test_outside_the_words_the_target_is_the_source():
    probs = torch.zeros(2, 1, 64, 5)
    probs[0, 0, 9, 2] = 1.0  # the source's word at row 1, column 1
    probs[1, 0, 54, 3] = 0.5  # the target's at row 6, column 6
    blend = LocalBlend(10, [((2,), (3,))], threshold=0.3, start=0.2)
    blend.look(call(0, guided=False, grid=(8, 8)), probs)
    latents = torch.randn(2, 4, 16, 16)
    assert torch.equal(blend.blend(state(1, latents)), latents)  # too early
    made = blend.blend(state(2, latents))
    assert torch.equal(made[0], latents[0])
    where = torch.zeros(16, 16, dtype=torch.bool)
    where[0:6, 0:6] = where[10:16, 10:16] = True  # twice as large, smoothed, and 3 x 3 neighbours
    for first in (0, 10):
        for row, column in ((0, 0), (0, 5), (5, 0), (5, 5)):
            where[first + row, first + column] = False
    assert torch.equal(blend.masks[0], where)
    assert torch.equal(made[1], torch.where(where, latents[1], latents[0]))


def test_a_pair_without_words_stays_whole_and_fine_grids_count():
    probs = maps(4, n=64, m=5)
    blend = LocalBlend(10, [((), ()), ((1,), (1,))], [(0, 1), (2, 3)], threshold=[0.0, 0.9])
    blend.look(call(0, 4, guided=False, grid=(4, 4)), maps(4, n=16, m=5))
    blend.look(call(0, 4, guided=False, grid=(8, 8)), probs)
    latents = torch.randn(4, 4, 16, 16)
    made = blend.blend(state(5, latents))
    assert torch.equal(made[:3], latents[:3]) and blend.masks[0].all() and not torch.equal(made[3], latents[3])
    large = maps(4, n=32 * 32, m=5)
    blend.look(call(0, 4, guided=False, grid=(32, 32)), large)
    assert blend.where(16, 16).shape == (2, 16, 16)
    with pytest.raises(ConfigError):
        LocalBlend(10, [((), ())], threshold=1.5)
    with pytest.raises(ConfigError):
        LocalBlend(10, [])


# --- whole edits


def test_an_edit_leaves_the_source_as_it_is(pipe):
    made = pipe.edit(Change(source=SOURCE, target=SWAPPED, seed=3), num_steps=4)
    assert made.shape == (2, 3, 64, 64) and not torch.allclose(made[0], made[1], atol=1e-3)
    assert torch.allclose(made[:1], pipe.draw([SOURCE], [3], num_steps=4), atol=1e-4)
    assert all(layer.tap is None for _, layer in pipe.unet.attention_layers())


def test_an_edit_to_the_same_sentence_gives_the_same_picture(pipe):
    plan = EditPlan(pipe.tokenizer, [Change(source=SOURCE, seed=3)], 4, may_be_empty=True)
    *_, last = pipe.edit_steps(plan, num_steps=4)
    assert plan.prompts == [SOURCE, SOURCE] and torch.allclose(last.latents[0], last.latents[1], atol=1e-5)
    assert torch.allclose(pipe.decode(last.latents[:1]), pipe.draw([SOURCE], [3], num_steps=4), atol=1e-4)


def test_no_injection_is_a_new_prompt_with_the_same_seed(pipe):
    made = pipe.edit(Change(source=SOURCE, target=SWAPPED, seed=3, injection=NOTHING), num_steps=4)
    assert torch.allclose(made, pipe.draw([SOURCE, SWAPPED], [3, 3], num_steps=4), atol=1e-4)


def test_the_target_takes_the_maps_in_its_window(pipe):
    change = Change(source=SOURCE, target=SWAPPED, injection=Injection(cross=0.5, self_=0.5, threshold=None))
    plan, recorder = EditPlan(pipe.tokenizer, [change], 4), Recorder(heads="all")
    plan.tap = chain(plan.tap, recorder)
    for _ in pipe.edit_steps(plan, num_steps=4):
        pass
    for kind in ("cross", "self"):
        same = {}
        for each in recorder.records:
            if each.call.site.kind == kind:
                alike = torch.equal(each.probs[0], each.probs[1])
                same[each.call.info.step] = same.get(each.call.info.step, True) and alike
        assert same == {0: True, 1: True, 2: False, 3: False}


def test_many_at_once_are_what_each_is_alone(pipe):
    changes = [
        Change(source=SOURCE, target=SWAPPED, seed=1),
        Change(source=SOURCE, target=REFINED, seed=1),
        Change(source="a blue house", weights={"blue": 2.0}, seed=5),
        Change(source="a blue house", ignore=["blue"], seed=5),
    ]
    plan = EditPlan(pipe.tokenizer, changes, 4)
    assert len(plan.prompts) == 6 and plan.sources == [0, 0, 3, 3]  # equal sources stand there once
    before, after = pipe.edit_many(changes, num_steps=4)
    for k, change in enumerate(changes):
        alone = pipe.edit(change, num_steps=4)
        assert torch.allclose(alone[0], before[k], atol=1e-3) and torch.allclose(alone[1], after[k], atol=1e-3)


def test_each_kind_of_edit_has_its_own_setting():
    assert Change(source=SOURCE, target=SWAPPED).how == SWAP and Change(source=SOURCE, target=REFINED).how == REFINE
    assert Change(source=SOURCE, target=SWAPPED, method="refine").how == REFINE
    assert Change(source=SOURCE, weights={"red": 2.0}).how == WEIGH == Change(source=SOURCE, ignore=["red"]).how
    assert Change(source=SOURCE, target=SWAPPED, injection=NOTHING).how == NOTHING


def test_edits_are_combined(pipe):
    change = Change(source=SOURCE, target=SWAPPED, weights={"red": 3.0}, ignore=["night"], seed=2)
    plan, recorder = EditPlan(pipe.tokenizer, [change], 4), Recorder()
    plan.tap = chain(plan.tap, recorder)
    for _ in pipe.edit_steps(plan, num_steps=4):
        pass
    cross = [each.probs for each in recorder.records if each.call.site.kind == "cross" and each.call.info.step == 0]
    for probs in cross:
        source, target = probs[:, 0].float()
        assert not target[..., 5].any() and source[..., 5].all()
        left = target[..., [k for k in range(32) if k not in (2, 5)]].sum(-1) + target[..., 2] / 3
        assert (target[..., 2] > source[..., 2]).all() and bool((left > 0).all())


def test_words_speak_more_or_less_to_the_others(pipe):
    tokens = pipe.tokenizer([SOURCE, SOURCE])
    plain = pipe.text_encoder(tokens)
    made = encode_weighted(pipe.text_encoder, tokens, [{}, {(2,): 0.0}])
    assert torch.equal(made[0], plain[0])
    assert torch.allclose(made[1, :3], plain[1, :3], atol=1e-5)  # before it, and its own vector
    assert not torch.allclose(made[1, 3:], plain[1, 3:], atol=1e-4)
    other = pipe.tokenizer(["a blue cat at night"])
    hidden = encode_weighted(pipe.text_encoder, other, [{(2,): 0.0}])
    assert torch.allclose(made[1, 3:], hidden[0, 3:], atol=1e-5)  # whatever the hidden word was
    double = encode_weighted(pipe.text_encoder, tokens[:1], [{(2,): 2.0}])[0]
    assert torch.allclose(double, 2 * plain[0] - made[1], atol=1e-4)
    with pytest.raises(ShapeError):
        encode_weighted(pipe.text_encoder, tokens, [{}])
    with pytest.raises(ShapeError):
        encode_weighted(pipe.text_encoder, tokens, [{}, {(40,): 0.0}])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"target": SOURCE}, ConfigError, "changes nothing"),
        ({"target": "A red  CAT at night"}, ConfigError, "changes nothing"),
        ({"weights": {"red": 1.0}}, ConfigError, "another sentence, a factor"),
        ({"weights": {"blue": 2.0}}, PromptError, r"one of \['a', 'red'"),
        ({"ignore": ["dog"]}, PromptError, "not in"),
        ({"target": REFINED, "method": "swap"}, PromptError, "equally many words"),
        ({"target": "two dogs"}, PromptError, "cannot be aligned"),
        ({"target": " "}, PromptError, ""),
        ({"target": "cat " * 40}, PromptError, ""),
        ({"target": SWAPPED, "injection": Injection(words={"cat": 0.5})}, PromptError, "not in"),
    ],
)
def test_what_cannot_be_edited_is_said(pipe, change, error, words):
    with pytest.raises(error, match=words):
        pipe.edit(Change(source=SOURCE, **change), num_steps=2)
    assert all(layer.tap is None for _, layer in pipe.unet.attention_layers())


def test_settings_that_cannot_be():
    for wrong in ({"cross": 2.0}, {"self_": "0.4"}, {"words": {"cat": -1.0}}):
        with pytest.raises(ConfigError):
            Injection(**wrong)
    with pytest.raises(ConfigError, match="list of words"):
        Change(source=SOURCE, ignore="red")
    with pytest.raises(ConfigError, match="method"):
        Change(source=SOURCE, method="replace")


def test_no_changes_and_a_compiled_unet_are_said(pipe):
    with pytest.raises(ConfigError, match="at least one"):
        pipe.edit_many([])
    compiled = make_pipeline()
    compiled.unet.compile()
    with pytest.raises(AttentionTapError, match="compiled"):
        compiled.edit(Change(source=SOURCE, target=SWAPPED), num_steps=2)


# --- a real picture


def test_inversion_finds_the_way_back():
    def smooth(latents, t, context):  # a denoiser that neighbours of the path agree on
        return latents * (0.3 + 0.6 * t.view(-1, 1, 1, 1) / 1000)

    latents, schedule, context = torch.randn(2, 4, 8, 8), NoiseSchedule(), torch.zeros(2, 3, 4)
    gaps = []
    for num_steps in (20, 200):
        path = ddim_path(smooth, latents, context, schedule, num_steps)
        assert len(path) == num_steps + 1 and torch.equal(path[-1], latents)
        *_, last = sample(Guided(smooth, context, None, 1.0), path[0], schedule, num_steps=num_steps)
        gaps.append(float((last.latents - latents).abs().mean()))
    assert gaps[1] < 0.2 * gaps[0] and gaps[1] < 0.02
    with pytest.raises(ShapeError, match="one context per picture"):
        ddim_path(smooth, latents, context[:1], schedule, 5)


def test_null_text_comes_nearer_and_leaves_the_weights(pipe):
    picture = pipe.draw([SOURCE], [3], num_steps=5)
    before = {name: weight.clone() for name, weight in pipe.unet.state_dict().items()}
    plain = pipe.invert(picture, SOURCE, num_steps=5, guidance=6.0, inner_steps=0)
    better = pipe.invert(picture, SOURCE, num_steps=5, guidance=6.0, inner_steps=8)
    assert torch.equal(plain.empties[0], plain.empties[-1]) and not torch.equal(better.empties[0], better.empties[-1])
    assert sum(better.misses) < 0.9 * sum(plain.misses)
    assert all(torch.equal(weight, before[name]) for name, weight in pipe.unet.state_dict().items())
    assert all(weight.requires_grad and weight.grad is None for weight in pipe.unet.parameters())
    made = pipe.edit_picture(better, [Change(source=SOURCE, target=SWAPPED)], guidance=6.0)
    assert made.shape == (2, 3, 64, 64) and not torch.allclose(made[0], made[1], atol=1e-3)
    assert torch.equal(made, pipe.edit_picture(better, [Change(source=SOURCE, target=SWAPPED)]))  # its own guidance
    with pytest.raises(ConfigError, match="one source"):
        pipe.edit_picture(better, [])
    with pytest.raises(ConfigError, match=f"expected: the inversion's sentence, '{SOURCE}'"):
        pipe.edit_picture(better, [Change(source=SWAPPED, target=SOURCE)])
    with pytest.raises(ConfigError, match="pixel values"):
        pipe.invert(picture * 255, SOURCE, num_steps=2)


def test_null_text_of_many_steps_does_not_learn_backwards():
    def smooth(latents, t, context):
        return 0.5 * latents + context.mean(dim=(1, 2))[:, None, None, None]

    class Smooth(torch.nn.Module):
        def forward(self, latents, t, context):
            return smooth(latents, t, context)

    schedule, context, empty = NoiseSchedule(), torch.ones(1, 3, 4), torch.zeros(1, 3, 4)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    path = ddim_path(Smooth(), latents, context, schedule, 250)
    plain = null_text(Smooth(), path, context, empty, schedule, 4.0, inner_steps=0)
    found = null_text(Smooth(), path, context, empty, schedule, 4.0, inner_steps=3)
    assert sum(found.misses[101:]) < 0.5 * sum(plain.misses[101:])


def test_a_plan_is_for_its_own_number_of_steps(pipe):
    plan = EditPlan(pipe.tokenizer, [Change(source=SOURCE, target=SWAPPED, seed=3)], 4)
    with pytest.raises(ConfigError, match="num_steps; given: 5; expected: 4"):
        next(pipe.edit_steps(plan, num_steps=5))
    first, again = (list(pipe.edit_steps(plan, num_steps=4))[-1].latents for _ in range(2))
    assert torch.equal(first, again)  # the maps of the first run are not added to the second's


# --- full size


@pytest.mark.slow
def test_full_size_has_32_layers_and_an_identity_edit_leaves_the_picture():
    with torch.device("meta"):
        unet = UNet(sd_v1().unet)
    assert len(unet.sites()) == 32 and sum(site.kind == "cross" for site in unet.sites()) == 16
    unet = unet.to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in unet.parameters():
            weight.normal_(std=0.5 / max(1, weight[0].numel()) ** 0.5, generator=generator)
    sentence = torch.randn(1, 77, 768, generator=generator)
    context = sentence.expand(2, -1, -1)
    latents = torch.randn(1, 4, 16, 16, generator=generator).expand(2, -1, -1, -1)
    seen = []

    class Aligned:
        mapper, new = torch.eye(77), torch.zeros(77, dtype=torch.bool)

    taps = chain(
        lambda call, probs: seen.append(call.site.name),
        TakeCross([Aligned()], [injection_table(2, 77, 1.0)]),
        TakeSelf(2, [1.0], largest=32 * 32),
    )

    def run():
        states = sample(Guided(unet, context, 0 * sentence, 2.0), latents, NoiseSchedule(), num_steps=2)
        return list(states)[-1].latents

    with torch.inference_mode():
        plain = run()
        with watch(unet, taps, "all") as sites:
            edited = run()
    assert len(sites) == 32 and len(set(seen)) == 32 and len(seen) == 64
    assert torch.isfinite(plain).all() and float(plain.std()) > 0.1
    assert torch.allclose(edited, plain, atol=1e-3, rtol=1e-3)
