"""How wide text is, and how it is cut; rich, which draws on terminals, is the judge."""

import random

import pytest
from rich.cells import cell_len

from gpuspool.orchestrator.text.cells import (
    cut_end,
    cut_front,
    cut_middle,
    cut_name,
    cut_words,
    fold,
    left,
    right,
    width,
    wrap,
)

ALPHABETS = ["abc", "漢字かなカナ", "e\u0301a\u0308", "👩🚀🎉", "ﾊﾝｶｸ全角", "a漢\u0301 👍"]


@pytest.mark.parametrize("text", ["", "abc", "漢字", "e\u0301", "👩", "한글", "ａｂ", "…", "é"])
def test_a_text_is_as_wide_as_rich_says(text: str) -> None:
    assert width(text) == cell_len(text)


def test_a_sequence_that_is_drawn_as_one_emoji_counts_at_least_its_cells() -> None:
    for text in ("❤️", "👩\u200d🚀", "👍🏽", "🇩🇪"):
        assert width(text) >= cell_len(text)


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize("cut", [cut_end, cut_front, cut_middle, cut_name, cut_words])
def test_what_is_cut_fits_and_what_fits_is_not_cut(cut, alphabet: str) -> None:  # type: ignore[no-untyped-def]
    draw = random.Random(alphabet)
    for _ in range(300):
        text = "".join(draw.choice(alphabet) for _ in range(draw.randrange(40)))
        most = draw.randrange(45)
        found = cut(text, most)
        assert cell_len(found) <= most
        if cell_len(text) <= most:
            assert found == text
        elif most > 0:
            assert "…" in found


def test_a_path_is_told_by_its_end_and_a_name_by_both() -> None:
    assert cut_name("images/train/cat-0001.jpg", 14) == "…/cat-0001.jpg"
    assert cut_name("sequence-of-ecoli-0001", 11) == "seque…-0001"
    assert cut_front("GPU-3f2a81c0", 5) == "…81c0"
    assert cut_end("does not load", 6) == "does …"


@pytest.mark.parametrize(
    ("most", "found"),
    [(18, "silent 1,068.5 s …"), (17, "silent 1,068.5 s…"), (15, "silent 1,068.5…"),
     (14, "silent …"), (10, "silent …"), (8, "silent …"), (7, "silent…"), (1, "…"), (0, "")],
)  # fmt: skip
def test_a_number_in_a_sentence_is_whole_or_left_out(most: int, found: str) -> None:
    assert cut_words("silent 1,068.5 s and more", most) == found


def test_wide_text_is_put_at_either_side() -> None:
    assert left("漢", 4) == "漢  "
    assert right("漢", 4) == "  漢"


def test_a_sentence_is_wrapped_and_its_longest_word_cut() -> None:
    assert wrap("one two three", 7) == ["one two", "three"]
    assert wrap("x" * 20, 7) == ["xxx…xxx"]


def test_a_line_is_folded_at_words_and_goes_on_indented() -> None:
    assert fold("one two three", 7) == ["one two", "three"]
    assert fold("one two three four", 9) == ["one two", "  three", "  four"]
    assert fold("  File one.py, line 2", 16) == ["  File one.py,", "    line 2"]
    assert fold("", 7) == [""]
    assert fold("fits all", 8) == ["fits all"]
    assert fold("ends in   ", 8) == ["ends in"]


def test_a_word_that_is_longer_than_a_line_is_broken_and_not_cut() -> None:
    assert fold("see " + "x" * 20, 9) == ["see", "  xxxxxxx", "  xxxxxxx", "  xxxxxx"]


@pytest.mark.parametrize("alphabet", [f"{alphabet}   " for alphabet in ALPHABETS])
def test_what_is_folded_fits_and_nothing_of_it_is_lost(alphabet: str) -> None:
    draw = random.Random(alphabet)
    for _ in range(300):
        text = "".join(draw.choice(alphabet) for _ in range(draw.randrange(80)))
        columns = draw.randrange(2, 45)
        lines = fold(text, columns)
        assert all(cell_len(line) <= columns for line in lines)
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert fold("漢字", 1) == ["漢", "字"], "wider than the window"
