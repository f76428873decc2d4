"""Images Side by Side and Images to Batch: every pixel, sizes, batches, labels, and what is refused."""

from __future__ import annotations

import logging

import pytest
import torch
from PIL import ImageFont
from reins.nodes.look import lettering
from reins.nodes.look.images_node import ImagesSideBySide, ImagesToBatch
from reins.nodes.look.lettering import font_for, missing, wrap
from torch import Tensor

KOREAN = "한국어"


def random(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand((count, height, width, 3), generator=torch.Generator().manual_seed(seed))


def row(*pictures: Tensor, **options) -> Tensor:
    images = {f"image_{i}": picture for i, picture in enumerate(pictures, 1)}
    return ImagesSideBySide.execute(**images, **options).result[0]


def batch(*pictures: Tensor) -> Tensor:
    return ImagesToBatch.execute(**{f"image_{i}": picture for i, picture in enumerate(pictures, 1)}).result[0]


def inked(strip: Tensor) -> Tensor:
    """Whether something is drawn in each column of a strip (h, w, 3)."""
    return (strip < 0.9).any(0).any(-1)


def test_pictures_of_one_height_keep_every_pixel_and_white_lies_between_them():
    first, second = random(1, 9, 5), random(1, 9, 7, seed=1)
    kept = first.clone()
    made = row(first, second, gap=4)
    assert made.dtype == torch.float32
    assert torch.equal(made, torch.cat([first, torch.ones(1, 9, 4, 3), second], 2))
    assert torch.equal(first, kept)


def test_picture_n_of_a_batch_stands_beside_picture_n_and_a_single_one_beside_each():
    single, several, others = random(1, 6, 5), random(3, 6, 5, seed=1), random(3, 6, 5, seed=2)
    made = row(single, several, others, gap=0)
    assert torch.equal(made, torch.cat([single.repeat(3, 1, 1, 1), several, others], 2))


def test_enlarged_every_pixel_is_a_square_of_its_colour():
    first, second = random(2, 4, 3), random(2, 4, 2, seed=1)
    made = row(first, second, enlarge=3, gap=1)
    assert made.shape == (2, 12, 9 + 1 + 6, 3)
    for y in range(12):
        for x in range(9):
            assert torch.equal(made[:, y, x], first[:, y // 3, x // 3])
    assert torch.equal(made[:, :, 10:], torch.nn.functional.interpolate(second.movedim(-1, 1), scale_factor=3)
                       .movedim(1, -1))  # fmt: skip


def test_a_lower_picture_is_scaled_to_the_height_of_the_highest_with_its_proportions():
    low, high = torch.full((1, 8, 12, 3), 0.25), random(1, 20, 10)
    made = row(low, high, gap=2)
    assert made.shape == (1, 20, 30 + 2 + 10, 3)
    torch.testing.assert_close(made[:, :, :30], torch.full((1, 20, 30, 3), 0.25))
    assert torch.equal(made[:, :, 32:], high)


def test_labels_stand_below_their_pictures_and_change_no_pixel_of_these():
    pictures = [random(2, 64, 80, seed=i) for i in range(3)]
    plain, made = row(*pictures), row(*pictures, labels="one\n\nthree")
    assert torch.equal(made[:, :64], plain)
    assert torch.equal(made[0, 64:], made[1, 64:])
    drawn = inked(made[0, 64:])
    assert [bool(drawn[left : left + 80].any()) for left in (0, 96, 192)] == [True, False, True]
    for left in (0, 192):
        columns = drawn[left : left + 80].nonzero().flatten()
        assert abs((columns.min() + columns.max()) / 2 - 40) < 2  # in the middle
    assert not drawn[80:96].any()


def test_the_line_of_a_socket_that_is_not_connected_is_left_out():
    first, third = random(1, 64, 64), random(1, 64, 64, seed=1)
    made = ImagesSideBySide.execute(image_1=first, image_2=None, image_3=third, labels="one\ntwo\nthree").result[0]
    assert torch.equal(made, row(first, third, labels="one\nthree"))


@pytest.mark.parametrize("labels", ["", " \n\n "])
def test_without_labels_there_is_no_strip_for_them(labels):
    assert row(random(1, 30, 30), random(1, 30, 30), labels=labels).shape == (1, 30, 76, 3)


def test_a_long_label_goes_on_in_the_next_line_and_stays_below_its_picture():
    made = row(random(1, 64, 64), random(1, 64, 64, seed=1), labels="the words alone, at a high CFG", gap=0)
    assert made.shape[1] > row(random(1, 64, 64), random(1, 64, 64), labels="one").shape[1] > 64
    assert not inked(made[0, 64:])[64:].any()


@pytest.mark.parametrize("text", ["one two three four", "withoutanyspace", "한국어에는 빈칸이", "a", "ab cd"])
@pytest.mark.parametrize("width", [1, 20, 40, 1000])
def test_wrapped_lines_hold_the_whole_text_and_fit_if_they_have_more_than_one_letter(text, width):
    font = ImageFont.load_default(12)
    lines = wrap(text, width, font)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(len(line) == 1 or font.getlength(line) <= width for line in lines)
    assert width < 1000 or lines == [text]


def test_a_line_ends_at_a_space_if_there_is_one():
    font = ImageFont.load_default(12)
    assert wrap("words alone", font.getlength("words alo"), font) == ["words", "alone"]


def test_letters_are_larger_under_larger_pictures_within_bounds():
    heights = [row(random(1, side, 2 * side), random(1, side, 2 * side), labels="a").shape[1] - side
               for side in (64, 192, 512, 768)]  # fmt: skip
    assert heights[0] == heights[1] < heights[2] < heights[3]


class AllAlike:
    """A font that draws every letter as the same ring, and has all of them."""

    def getmask(self, text):
        return ImageFont.load_default(12).getmask("" if text == lettering.NO_LETTER else "o")


def test_letters_that_the_font_of_pillow_lacks_are_drawn_by_a_font_that_has_them(monkeypatch):
    asked = []
    monkeypatch.setattr(
        lettering, "installed",
        lambda name, size: asked.append((name, size)) or (AllAlike() if name == "malgun.ttf" else None),
    )  # fmt: skip
    assert missing(f"a {KOREAN}a", ImageFont.load_default(12)) == KOREAN
    assert isinstance(font_for(f"a {KOREAN}", 12), AllAlike)
    assert asked[-1] == ("malgun.ttf", 12)


def test_letters_that_no_font_has_are_named_in_the_log_and_the_row_is_made(monkeypatch, caplog):
    monkeypatch.setattr(lettering, "installed", lambda name, size: None)
    with caplog.at_level(logging.WARNING):
        made = row(random(1, 64, 64), random(1, 64, 64), labels=f"plain\n{KOREAN}{KOREAN}")
    assert inked(made[0, 64:])[80:].any()
    (said,) = [entry.getMessage() for entry in caplog.records]
    assert said == (
        f"labels should have letters that a font of this machine has, but none has {KOREAN}. They are drawn as empty "
        f"boxes. Install a font that has them, such as Noto Sans CJK."
    )


def test_plain_english_asks_for_no_other_font(monkeypatch):
    monkeypatch.setattr(lettering, "installed", None)
    row(random(1, 64, 64), random(1, 64, 64), labels="CFG 3, scale 0.5\n(with PAG) +5%")


def test_a_name_of_a_font_that_is_not_there_is_none():
    assert lettering.installed("no such font.ttf", 12) is None


def test_batches_of_two_sizes_above_one_are_refused():
    with pytest.raises(ValueError) as error:
        row(random(1, 8, 8), random(2, 8, 8), random(3, 8, 8))
    assert str(error.value) == (
        "The images should be batches of one size or single pictures, but image_1 has 1, image_2 has 2, image_3 has 3. "
        "Connect as many pictures to each, or one."
    )


def test_more_lines_than_sockets_are_refused():
    with pytest.raises(ValueError) as error:
        row(random(1, 8, 8), random(1, 8, 8), labels="a\nb\nc\nd\ne\nf\ng")
    assert str(error.value) == (
        "labels should have a line for each of 6 images at most, but has 7 lines. Write each label in one line; a long "
        "one is wrapped by itself."
    )


def test_a_batch_has_all_pictures_in_the_order_of_the_inputs_with_every_pixel():
    pictures = [random(count, 7, 9, seed=count) for count in (1, 3, 2, 1, 1, 1)]
    made = batch(*pictures)
    assert made.dtype == torch.float32
    assert torch.equal(made, torch.cat(pictures))
    assert torch.equal(batch(made, pictures[1]), torch.cat([made, pictures[1]]))


@pytest.mark.parametrize(("height", "width"), [(12, 18), (12, 30), (24, 18), (6, 9), (3, 90)])
def test_in_a_batch_the_middle_of_other_shapes_is_scaled_to_the_size_of_the_first(height, width):
    first = random(1, 12, 18)
    across = torch.linspace(0, 1, width)[None, None, :, None].expand(1, height, width, 3)
    made = batch(first, across)
    assert made.shape == (2, 12, 18, 3)
    assert torch.equal(made[:1], first)
    share = min(1, height * 18 / 12 / width)  # of the width that is left
    ends = torch.tensor([0.5 - share / 2, 0.5 + share / 2])
    torch.testing.assert_close(made[1, 6, [0, -1], 0], ends, atol=0.09, rtol=0)
    torch.testing.assert_close(made[1].mean(), torch.tensor(0.5), atol=0.03, rtol=0)
