"""Word dropout: what a sentence loses while CLIP learns, and what it never loses."""

import pytest
import torch

from ldm_tutor.training.stages.clip import drop_words

START, END = 0, 9
ROWS = 4000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sentences() -> torch.Tensor:
    return torch.tensor([START, 1, 2, 3, 4, 5, END, END]).repeat(ROWS, 1)


def words(row: torch.Tensor) -> list[int]:
    return [word for word in row.tolist() if word not in (START, END)]


def test_what_is_left_keeps_its_order_and_the_end_closes_up():
    for row in drop_words(sentences(), END, 0.4, seeded()):
        kept = words(row)
        assert kept == sorted(set(kept))
        assert row.tolist() == [START, *kept, *[END] * (7 - len(kept))]


def test_half_of_the_sentences_lose_words_and_of_those_the_share_asked_for():
    counts = torch.tensor([len(words(row)) for row in drop_words(sentences(), END, 0.4, seeded())])
    whole = (counts == 5).float().mean().item()
    assert whole == pytest.approx(0.5 + 0.5 * 0.6**5, abs=0.03)
    assert counts.float().mean().item() / 5 == pytest.approx(1 - 0.5 * 0.4, abs=0.02)


def test_with_everything_dropped_start_and_end_stay():
    rows = {tuple(row.tolist()) for row in drop_words(sentences(), END, 1.0, seeded())}
    assert rows == {(START, 1, 2, 3, 4, 5, END, END), (START, *[END] * 7)}


def test_the_generator_decides_alone_and_the_sentences_given_stay_as_they_are():
    given = sentences()
    first, again = (drop_words(given, END, 0.3, seeded(4)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, drop_words(given, END, 0.3, seeded(5)))
    assert torch.equal(given, sentences())
