"""The judge reads drawn scenes without a mistake, and what it says of worse pictures is known."""

from __future__ import annotations

import pytest
import torch
from reins.demo.judge import judge, overlap
from reins.demo.world.scenes import SLOTS, draw, draw_words, render
from torch.nn import functional

COUNT = 150


@pytest.fixture(scope="module")
def scenes():
    words = draw_words(COUNT, torch.Generator().manual_seed(5))
    words[:, -1] = torch.arange(COUNT) % 3
    return draw(COUNT, torch.Generator().manual_seed(6), words)


@pytest.fixture(scope="module")
def views(scenes):
    return render(scenes)


def noisy(image: torch.Tensor, strength: float) -> torch.Tensor:
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(7))
    return (image + strength * noise).clamp(0, 1)


def blurred(image: torch.Tensor, size: int) -> torch.Tensor:
    return functional.avg_pool2d(functional.pad(image, [size // 2] * 4, mode="reflect"), size, 1)


def all_right(image: torch.Tensor, words: torch.Tensor) -> float:
    return judge(image).right(words).all(1).float().mean().item()


def test_drawn_scenes_are_read_right_in_every_slot(scenes, views):
    verdict = judge(views.image)
    right = verdict.right(scenes.words)
    assert right.float().mean(0).min() >= 0.99
    assert right.all(1).float().mean() >= 0.99
    assert overlap(verdict.mask, views.mask).min() > 0.85
    assert overlap(verdict.mask, views.mask).mean() > 0.99
    assert (verdict.radius - scenes.radius).abs().mean() < 0.15


def test_a_drawn_scene_is_its_own_nearest_clean_scene(views):
    verdict = judge(views.image)
    assert verdict.quality.quantile(0.05) > 35
    assert verdict.template_error.mean() < 0.02
    assert (verdict.clean - views.image).abs().mean() < 0.01


@pytest.mark.parametrize(("strength", "least"), [(0.02, 0.99), (0.05, 0.99), (0.1, 0.97)])
def test_a_little_noise_changes_no_word(scenes, views, strength, least):
    assert all_right(noisy(views.image, strength), scenes.words) >= least


def test_quality_falls_with_noise_as_its_definition_says(views):
    """Noise of deviation s lies 20 log10(1 / s) dB from the clean picture."""
    levels = [0.02, 0.05, 0.1, 0.2]
    quality = [judge(noisy(views.image, level)).quality.mean().item() for level in levels]
    assert quality == sorted(quality, reverse=True)
    for level, found in zip(levels[:2], quality, strict=False):
        assert found == pytest.approx(-20 * torch.tensor(level).log10().item(), abs=1.0)


def test_a_blur_lowers_quality_hides_the_texture_and_leaves_the_rest(scenes, views):
    clean, soft, softer = judge(views.image), judge(blurred(views.image, 3)), judge(blurred(views.image, 5))
    assert clean.quality.mean() > soft.quality.mean() + 10 > softer.quality.mean() + 11
    right = soft.right(scenes.words)[:, :5]
    assert right.all(1).float().mean() > 0.95
    textured = scenes.words[:, -1] > 0
    assert softer.right(scenes.words)[textured, 5].float().mean() < 0.1


def test_pictures_of_other_words_pictures_mixed_and_noise_are_told_apart(scenes, views):
    assert all_right(views.image.roll(1, 0), scenes.words) < 0.02  # wrong words
    mixed = judge((views.image + views.image.roll(1, 0)) / 2)
    assert mixed.quality.mean() < 25
    noise = judge(torch.rand(100, 3, 32, 32, generator=torch.Generator().manual_seed(8)))
    assert noise.quality.mean() < 12
    assert noise.template_error.mean() > 0.3


def test_an_unsaid_slot_is_always_right(scenes, views):
    asked = scenes.words.roll(1, 0).clone()
    asked[:, :5] = -1
    right = judge(views.image).right(asked)
    assert right[:, :5].all()
    assert right.shape == (COUNT, len(SLOTS))
    assert not right[:, 5].any()  # textures alternate, so every rolled one is wrong


def test_a_picture_is_judged_alike_alone_and_in_a_batch(views):
    alone, together = judge(views.image[3:4]), judge(views.image[:8])
    assert torch.equal(alone.words[0], together.words[3])
    assert torch.allclose(alone.quality[0], together.quality[3], atol=1e-3)


def test_a_picture_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"expected pictures of shape \(b, 3, 32, 32\), found \(1, 3, 64, 64\)"):
        judge(torch.zeros(1, 3, 64, 64))
