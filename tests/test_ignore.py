"""Hiding a token from the cross-attention maps: the same as a mask before the softmax, and only where it should be."""

import pytest
import torch
from tiny import make_pipeline

from ldm_tutor.attention_maps.ignore import Ignore
from ldm_tutor.attention_maps.record import Recorder
from ldm_tutor.attention_maps.watch import chain, watch
from ldm_tutor.errors import AttentionTapError, ConfigError
from ldm_tutor.nn.attention import Call, CallInfo, Row, Site

CROSS, SELF = (Site(f"mid.block0.layer0.{kind}", "mid", 1, kind, 2) for kind in ("cross", "self"))
SCORES = torch.randn(2, 2, 4, 5, generator=torch.Generator().manual_seed(0))


def call(*rows, site=CROSS):
    return Call(site, (2, 2), CallInfo(rows=rows))


def masked(tokens):
    scores = SCORES.clone()
    scores[..., tokens] = -torch.inf
    return scores.softmax(-1)


@pytest.mark.parametrize("tokens", [[2], [0, 4], [1, 1], [0, 1, 2, 3]])
def test_it_is_a_mask_before_the_softmax(tokens):
    probs = SCORES.softmax(-1)
    before = probs.clone()
    assert torch.allclose(Ignore(tokens)(call(), probs), masked(tokens), atol=1e-6)
    assert torch.equal(probs, before)


def test_only_rows_that_see_their_sentence_change():
    probs = SCORES.softmax(-1)
    made = Ignore([2])(call(Row(0, conditional=False), Row(0, conditional=True)), probs)
    assert torch.equal(made[0], probs[0]) and torch.allclose(made[1], masked([2])[1], atol=1e-6)


def test_every_sentence_can_have_a_list_of_its_own():
    probs = SCORES.softmax(-1)
    for given in (call(), call(Row(0, conditional=True), Row(1, conditional=True))):
        made = Ignore(per_prompt=[[], [1, 3]])(given, probs)
        assert torch.equal(made[0], probs[0]) and torch.allclose(made[1], masked([1, 3])[1], atol=1e-6)


def test_where_there_is_nothing_to_hide_nothing_is_touched():
    probs = SCORES.softmax(-1)
    assert Ignore()(call(), probs) is None and Ignore(per_prompt=[[], []])(call(), probs) is None
    assert Ignore([1])(call(site=SELF), probs) is None


def test_wrong_tokens_and_lists_are_said():
    probs = SCORES.softmax(-1)
    with pytest.raises(ConfigError, match="from 0 on"):
        Ignore([-1])
    with pytest.raises(ConfigError, match="per_prompt"):
        Ignore([1], per_prompt=[[1]])
    for tokens in ([5], [0, 1, 2, 3, 4]):
        with pytest.raises(AttentionTapError, match="some of 0 to 4"):
            Ignore(tokens)(call(), probs)
    with pytest.raises(AttentionTapError, match="one list for each sentence"):
        Ignore(per_prompt=[[1]])(call(), probs)
    with pytest.raises(AttentionTapError, match="one list for each sentence"):
        Ignore(per_prompt=[[1]])(call(Row(0, conditional=True), Row(1, conditional=True)), probs)


def test_in_a_drawing_the_token_has_no_weight_and_the_picture_changes():
    pipe, recorder = make_pipeline(), Recorder(heads="all")
    plain = pipe.draw(["a red cat", "a blue dog"], [1, 2], num_steps=2)
    with watch(pipe.unet, chain(Ignore(per_prompt=[[3], []]), recorder)):
        made = pipe.draw(["a red cat", "a blue dog"], [1, 2], num_steps=2)
    assert not torch.equal(made[0], plain[0]) and torch.allclose(made[1], plain[1], atol=1e-4)
    assert all(
        float(each.probs[0, ..., 3].max()) == 0 < float(each.probs[1, ..., 3].max()) for each in recorder.records
    )
