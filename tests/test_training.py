"""The training loop: what is resumed ends as what was never stopped; rates, averages and files are as they say."""

from __future__ import annotations

import signal

import pytest
import torch
from reins.demo.training import trainer
from reins.demo.training.curve import Curve
from reins.demo.training.data import ALL_UNSAID, UNSAID, ask, draw_batch
from reins.demo.training.files import write_weights
from reins.demo.training.muon import Muon, orthogonalise
from reins.demo.training.trainer import Interrupted, Plan, train
from safetensors import safe_open
from torch import nn

PLAN = Plan(steps=12, batch=4, warm_up=2)


class LineTask:
    """A task small enough for a test: two layers learn the mean of the noise that they are shown."""

    name = "line"

    def __init__(self) -> None:
        torch.manual_seed(1)
        self.network = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 3)).requires_grad_(False)
        self.stop_at: int | None = None
        self.calls = 0

    def parameters(self):
        return dict(self.network.named_parameters())

    def loss(self, batch, generator):
        self.calls += 1
        if self.calls == self.stop_at:
            signal.raise_signal(signal.SIGINT)
        x = torch.randn(batch, 3, generator=generator)
        return (self.network(x) - x.roll(1, 1)).pow(2).mean()


def test_a_run_that_was_stopped_and_resumed_ends_with_the_same_bits(tmp_path):
    whole = train(LineTask(), PLAN, tmp_path / "whole").average
    stopped = LineTask()
    stopped.stop_at = 5
    with pytest.raises(Interrupted, match="stopped after step 5 of 12"):
        train(stopped, PLAN, tmp_path / "parts")
    resumed = LineTask()
    parts = train(resumed, PLAN, tmp_path / "parts").average
    assert resumed.calls == 7
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_resumed_run_goes_on_with_its_curve(tmp_path):
    curves = []
    for folder, stop in (("whole", None), ("parts", 5)):
        task = LineTask()
        task.stop_at = stop
        if stop:
            with pytest.raises(Interrupted):
                train(task, PLAN, tmp_path / folder)
            task = LineTask()
        train(task, PLAN, tmp_path / folder)
        curves.append(torch.load(tmp_path / folder / "state.pt", weights_only=True)["curve"])
    assert curves[0] == curves[1]


def test_another_seed_trains_on_other_pictures_and_settings_are_not_mixed(tmp_path):
    first = train(LineTask(), PLAN, tmp_path / "first").average
    other = train(LineTask(), Plan(steps=12, batch=4, warm_up=2, seed=1), tmp_path / "other").average
    assert any(not torch.equal(first[name], other[name]) for name in first)
    with pytest.raises(ValueError, match=r"belongs to a run with other settings.*--fresh"):
        train(LineTask(), Plan(steps=12, batch=8, warm_up=2), tmp_path / "first")


def test_training_learns_and_its_average_follows_the_weights(tmp_path):
    task = LineTask()
    average = train(
        task, Plan(steps=400, batch=32, warm_up=10, matrix_rate=0.05, rate=0.02, average=0.9), tmp_path
    ).average
    start = LineTask().loss(512, torch.Generator().manual_seed(9))
    task.network.load_state_dict(average)
    assert task.loss(512, torch.Generator().manual_seed(9)) < 0.2 * start
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_the_rate_rises_rests_and_falls_to_nothing():
    plan = Plan(steps=100, batch=1, warm_up=10, cool_down=0.5)
    factors = [plan.rate_factor(step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:51] == [1.0] * 42
    assert factors[75] == pytest.approx(0.5)
    assert 0 < factors[99] < 0.03


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (8, 8), (5, 40)])
def test_an_orthogonalised_matrix_has_singular_values_near_one_and_keeps_its_directions(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalise(matrix)
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.5 and values.max() < 1.3
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    alike = (result * (u @ vh)).sum() / (result.norm() * (u @ vh).norm())
    assert alike > 0.97


def test_muon_moves_a_kernel_as_the_matrix_that_it_is():
    gradient = torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    moved = []
    for shape in ((6, 2, 3, 3), (6, 18)):
        parameter = nn.Parameter(torch.zeros(shape))
        parameter.grad = gradient.view(shape).clone()
        Muon([parameter], lr=0.1).step()
        moved.append(parameter.detach().flatten(1))
    assert torch.equal(*moved)
    assert moved[0].norm() > 0.1


def test_the_question_is_v_and_v_gives_the_picture_back():
    """x0 = x / c^2 - v s / c with c^2 = 1 + s^2, where x is the noisy latent before it is scaled by 1 / c."""
    sigmas = torch.linspace(0.03, 14, 1000)
    latent = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    asked = ask(latent, sigmas, torch.Generator().manual_seed(2))
    length = (1 + asked.sigma**2).sqrt()
    x = asked.x * length
    assert torch.allclose(x / length**2 - asked.target * asked.sigma / length, latent, atol=1e-4)
    assert torch.equal(asked.sigma.flatten(), sigmas[asked.timestep.long()])
    share = asked.timestep - torch.arange(64) * (1000 / 64)
    assert share.min() > -1 and share.max() < 1000 / 64  # one row in each 64th of the levels
    low = ask(latent, sigmas, torch.Generator().manual_seed(2), high_noise=2.0).timestep
    assert low.mean() < asked.timestep.mean() - 100


def test_words_are_left_out_as_often_as_they_should_be():
    said = draw_batch(4000, torch.Generator().manual_seed(0)).prompt
    silent = (said < 0).all(1).float().mean().item()
    assert silent == pytest.approx(ALL_UNSAID, abs=0.02)
    some = (said < 0)[(said >= 0).any(1)].float().mean().item()
    assert some == pytest.approx(UNSAID, abs=0.02)
    drawn = draw_batch(100, torch.Generator().manual_seed(0), texture="checked", unsaid=(0, 0, 1, 0, 0, 0))
    assert (drawn.scenes.words[:, -1] == 2).all()
    assert (drawn.prompt[:, 2] == -1).all()


def test_a_file_is_half_precision_with_its_card_and_refuses_what_does_not_fit(tmp_path):
    path = tmp_path / "new" / "file.safetensors"
    write_weights({"a": torch.tensor([1.0, 2.0]), "n": torch.tensor([3])}, path, {"trained": "by a test"})
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"trained": "by a test"}
        assert file.get_tensor("a").dtype == torch.float16
        assert file.get_tensor("n").dtype == torch.int64
    with pytest.raises(ValueError, match=r"other\.safetensors was not written: a does not fit into float16"):
        write_weights({"a": torch.tensor([1e6])}, tmp_path / "other.safetensors", {})
    assert [file.name for file in tmp_path.iterdir()] == ["new"]


def test_the_curve_is_a_running_mean_with_a_point_every_few_steps():
    curve = Curve()
    for step in range(1, 101):
        curve.add(step, 1.0 if step == 1 else 0.0)
    assert curve.steps == list(range(10, 101, 10))
    assert curve.losses[-1] == curve.latest == pytest.approx(0.98**99)


def test_a_state_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    train(LineTask(), PLAN, tmp_path)
    before = (tmp_path / "state.pt").read_bytes()
    monkeypatch.setattr(trainer.torch, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        train(LineTask(), Plan(steps=20, batch=4, warm_up=2), tmp_path)
    assert (tmp_path / "state.pt").read_bytes() == before
