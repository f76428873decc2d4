"""Encoded pictures turned, averaged and moved by words, inside the real host: unCLIP, SDXL, Cascade, IP-Adapter."""

from __future__ import annotations

import comfy.clip_vision
import comfy.supported_models
import pytest
import torch
from reins.nodes.clip_vision.nodes import CLIPTextDiff, CLIPVisionMean, CLIPVisionSlerp
from reins.nodes.clip_vision.text import projected_text
from reins.nodes.ip_adapter.encode_node import IPAdapterEncode
from reins.tests.helpers import ip_adapter, tiny_models, unclip
from reins.tests.helpers.tiny_models import sample
from reins.tests.helpers.unclip import WIDTH, adm, conditioned, embeds, encoded, text_encoder
from torch.nn.functional import cosine_similarity, normalize

import nodes

PARTS = ("image_embeds", "last_hidden_state", "penultimate_hidden_states")


def slerp(*args, **settings):
    return CLIPVisionSlerp.execute(*args, **settings).result[0]


def mean(*outputs, **settings):
    named = {f"output_{i}": output for i, output in enumerate(outputs, 1)}
    return CLIPVisionMean.execute(**named, **settings).result[0]


def moved(clip, output, theta=0.3, source="a photo of a cat", target="a photo of a dog", **settings):
    return CLIPTextDiff.execute(clip, source, target, output, theta, **settings).result[0]


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def sd21():
    return unclip.sd21()


# --- slerp -----------------------------------------------------------------------------------------------------------


def test_the_result_is_the_hosts_own_kind_and_the_inputs_stay_as_they_are():
    a, b = encoded(1), encoded(2)
    before = [{part: one[part].clone() for part in PARTS} for one in (a, b)]
    found = [*slerp(a, b, 0.3), mean(a, b), moved(text_encoder(), a)]
    for one in found:
        assert type(one) is comfy.clip_vision.Output
        assert one["image_embeds"] is one.image_embeds
        assert one.mm_projected is None
        assert set(vars(one)) == set(vars(a))
        assert getattr(one, "image_sizes", 0) == getattr(a, "image_sizes", 0)
        assert all(one[part].shape == a[part].shape for part in PARTS)
    for one, values in zip((a, b), before, strict=True):
        assert all(torch.equal(one[part], value) for part, value in values.items())


def test_the_ends_are_a_and_b_to_the_bit_in_every_part():
    a, b = encoded(1), encoded(2)
    for t, end in ((0.0, a), (1.0, b)):
        (found,) = slerp(a, b, t)
        assert all(torch.equal(found[part], end[part]) for part in PARTS)
        assert all(found[part].data_ptr() != end[part].data_ptr() for part in PARTS)


def test_the_embedding_and_every_token_keep_the_length_on_the_way():
    a, b = encoded(1), encoded(2)
    (found,) = slerp(a, b, 0.3)
    for part in PARTS:
        lengths = [one[part].norm(dim=-1) for one in (a, b, found)]
        torch.testing.assert_close(lengths[2], 0.7 * lengths[0] + 0.3 * lengths[1])
        assert not torch.allclose(found[part], 0.7 * a[part] + 0.3 * b[part], rtol=1e-3)


def test_a_picture_meets_a_batch_and_batches_go_in_pairs():
    a, b = encoded(1), encoded(2, b=3)
    for one, other in ((a, b), (b, a)):
        (found,) = slerp(one, other, 0.3)
        assert len(getattr(found, "image_sizes", [0] * 3)) == 3
        for i in range(3):
            row = {part: b[part][i : i + 1] for part in PARTS}
            alone = embeds(**{"values" if part == "image_embeds" else part: row[part] for part in PARTS})
            (single,) = slerp(a, alone, 0.3) if one is a else slerp(alone, a, 0.3)
            assert all(torch.allclose(found[part][i], single[part][0], atol=1e-6) for part in PARTS)
    pairs = slerp(encoded(3, b=3), b, 0.3)[0]
    assert pairs.image_embeds.shape == (3, WIDTH)
    with pytest.raises(ValueError, match=r"a holds 2 and b holds 3\. Encode the same number for both"):
        slerp(encoded(1, b=2), b)


def test_other_parts_of_an_output_go_along():
    every = {"all_hidden_states": random(1, 3, 5, 8), "mm_projected": random(1, 4, 8), "image_sizes": [(3, 28, 28)]}
    other = {name: value + 1 if isinstance(value, torch.Tensor) else value for name, value in every.items()}
    a, b = embeds(random(1, 8), **every), embeds(random(1, 8, seed=1), **other, only_here=random(1, 8))
    for found in (*slerp(a, b), *slerp(b, a), mean(a, b)):
        assert set(vars(found)) == {"image_embeds", *every}
        assert found.image_sizes == [(3, 28, 28)]
        for part in ("all_hidden_states", "mm_projected"):
            assert found[part].shape == a[part].shape
            assert not torch.equal(found[part], a[part])


def test_half_precision_is_computed_in_single_and_comes_back_as_it_was():
    a, b = (embeds(1e-3 * random(1, 700, seed=i).half()) for i in (1, 2))
    exact = slerp(embeds(a.image_embeds.double()), embeds(b.image_embeds.double()), 0.3)[0].image_embeds
    found = slerp(a, b, 0.3)[0].image_embeds
    assert found.dtype == torch.float16
    torch.testing.assert_close(found, exact.half(), rtol=1e-3, atol=1e-6)
    assert slerp(a, embeds(b.image_embeds.float()))[0].image_embeds.dtype == torch.float32
    assert mean(a, b).image_embeds.dtype == torch.float16
    assert moved(text_encoder(), embeds(random(1, WIDTH).half())).image_embeds.dtype == torch.float16


def test_frames_are_a_list_through_the_hosts_execution_and_one_is_as_a_plain_output(sd21):
    a, b = encoded(1), encoded(2)
    assert CLIPVisionSlerp.define_schema().outputs[0].is_output_list
    inputs = {"a": [a], "b": [b], "t": [0.3]}
    (alone,) = unclip.executed(CLIPVisionSlerp, inputs)
    assert torch.equal(alone.image_embeds, slerp(a, b, 0.3)[0].image_embeds)
    frames = unclip.executed(CLIPVisionSlerp, {**inputs, "frames": [4]})
    assert len(frames) == 4
    for i, frame in enumerate(frames):
        assert torch.equal(frame.image_embeds, slerp(a, b, i / 3)[0].image_embeds)
    for outputs in ([alone], frames):
        stock = {"strength": [1.0], "noise_augmentation": [0.0]}
        made = unclip.executed(
            nodes.unCLIPConditioning(), {"conditioning": [tiny_models.text(1)], "clip_vision_output": outputs, **stock}
        )
        assert len(made) == len(outputs)
        for conditioning, output in zip(made, outputs, strict=True):
            assert torch.equal(adm(sd21, conditioning), adm(sd21, conditioned(output)))


# --- what reads the result -------------------------------------------------------------------------------------------


def test_unclip_draws_what_lies_between(sd21):
    a, b = encoded(1), encoded(2)
    drawn = [sample(sd21, positive=conditioned(slerp(a, b, t)[0])) for t in (0.0, 0.5, 1.0)]
    plain = [sample(sd21, positive=conditioned(one)) for one in (a, b)]
    assert torch.equal(drawn[0], plain[0])
    assert torch.equal(drawn[2], plain[1])
    for other in (*plain, sample(sd21)):
        assert not torch.allclose(drawn[1], other, rtol=1e-2)


def test_stacking_grows_beyond_what_unclip_was_trained_on_and_the_mean_does_not(sd21):
    a, b = encoded(1), encoded(2)
    one, both, batch, between = (
        adm(sd21, conditioning)[:, :WIDTH].norm()
        for conditioning in (
            conditioned(a), conditioned(b, conditioned(a)), conditioned(encoded(1, b=3)), conditioned(mean(a, b)),
        )
    )  # fmt: skip
    assert both > 1.3 * one
    assert batch > 1.9 * one
    lengths = [output.image_embeds.norm() for output in (a, b)]
    torch.testing.assert_close(between, sum(lengths) / 2, rtol=1e-2, atol=0)
    assert not torch.allclose(sample(sd21, positive=conditioned(mean(a, b))), sample(sd21, positive=conditioned(a)))


def test_stable_cascade_reads_the_result():
    a, b = encoded(1), encoded(2)
    (found,) = slerp(a, b)
    conditioning = conditioned(mean(found, b), conditioned(found))
    conds = unclip.cascade().extra_conds(**conditioning[0][1])
    assert torch.equal(conds["clip_img"].cond[0], torch.cat([found.image_embeds, mean(found, b).image_embeds]))


def test_sdxl_reads_the_result():
    a, b = embeds(random(1, 1280)), embeds(random(1, 1280, seed=1))
    found = slerp(a, b)[0]
    pooled = adm(tiny_models.sdxl(), conditioned(found))[:, :1280]
    assert cosine_similarity(pooled, found.image_embeds) > 0.999  # the host adds a little noise even at 0
    assert not torch.allclose(pooled, adm(tiny_models.sdxl(), conditioned(a))[:, :1280])


@pytest.mark.parametrize("kind", ["linear", "plus"])
def test_an_ip_adapter_reads_the_result_as_its_own_slerp(kind, sd15):
    made, image = ip_adapter.adapter(sd15, kind), torch.cat([ip_adapter.picture(1), ip_adapter.picture(2)])
    own = IPAdapterEncode.execute(made, ip_adapter.encoder(), image, image_weights="0.7, 0.3", combine="slerp").result[
        0
    ]
    found = IPAdapterEncode.execute(made, clip_vision_output=slerp(encoded(1), encoded(2), 0.3)[0]).result[0]
    torch.testing.assert_close(found.cond, own.cond, rtol=1e-4, atol=1e-4)
    average = IPAdapterEncode.execute(made, clip_vision_output=mean(encoded(1), encoded(2))).result[0]
    assert average.cond.shape == found.cond.shape
    assert not torch.allclose(average.cond, found.cond, rtol=1e-2)


# --- mean ------------------------------------------------------------------------------------------------------------


def test_a_batch_counts_as_its_pictures_with_the_weight_of_its_output():
    a, batch = encoded(1), encoded(2, b=3)
    rows = [embeds(row[None]) for row in batch.image_embeds]
    for several, single in (("", ""), ("1, -0.5", "1, -0.5, -0.5, -0.5")):
        found = mean(a, batch, weights=several)
        assert all(len(found[part]) == 1 for part in PARTS)
        assert len(getattr(mean(batch, a), "image_sizes", [0])) == 1
        torch.testing.assert_close(found.image_embeds, mean(a, *rows, weights=single).image_embeds)
    directions = normalize(torch.cat([a.image_embeds, batch.image_embeds]), dim=-1).mean(0, keepdim=True)
    torch.testing.assert_close(normalize(mean(a, batch).image_embeds, dim=-1), normalize(directions, dim=-1))


def test_sockets_may_be_left_out_and_weights_follow_those_that_are_connected():
    a, b = encoded(1), encoded(2)
    sockets = [socket for socket in CLIPVisionMean.define_schema().inputs if socket.id.startswith("output_")]
    assert [socket.id for socket in sockets] == [f"output_{i}" for i in range(1, 9)]
    assert all(socket.optional for socket in sockets)
    found = CLIPVisionMean.execute(output_7=b, output_3=a, output_5=None, weights="3, 1").result[0]
    assert torch.equal(found.image_embeds, mean(a, b, weights="3, 1").image_embeds)
    assert not torch.allclose(found.image_embeds, mean(b, a, weights="3, 1").image_embeds, rtol=1e-2)
    assert torch.equal(mean(a, b, weights="1, 0").last_hidden_state, a.last_hidden_state)
    with pytest.raises(ValueError, match=r"needs at least one encoded picture, but nothing is connected\. Connect"):
        mean(None)
    with pytest.raises(ValueError, match="one number for each of the 2 connected outputs, but are 3"):
        mean(a, None, b, weights="1, 1, 1")


# --- text diff -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host_projects", [True, False])
def test_the_text_is_projected_whether_the_host_does_it_or_not(host_projects):
    clip = text_encoder(host_projects=host_projects)
    _, pooled = clip.encode_from_tokens(clip.tokenize("a cat"), return_pooled=True)
    expected = unclip.projected(clip, "a cat")
    assert torch.allclose(pooled, expected, atol=1e-5) == host_projects
    torch.testing.assert_close(projected_text(clip, "a cat", WIDTH), expected)
    long = "a cat " * 100
    _, pooled = clip.encode_from_tokens(clip.tokenize(long), return_pooled=True)
    found = projected_text(clip, f"(cat:1.2) {long}", WIDTH)
    assert found.shape == expected.shape
    assert not torch.allclose(found, expected, rtol=1e-2)
    assert not any(module._forward_hooks for module in clip.cond_stage_model.modules())


def test_a_picture_turns_towards_the_difference_of_the_texts_and_keeps_its_length():
    clip, output = text_encoder(), encoded(1, b=2)
    texts = [normalize(unclip.projected(clip, text), dim=-1) for text in ("a photo of a cat", "a photo of a dog")]
    difference = normalize(texts[1] - texts[0], dim=-1)
    found = moved(clip, output, 0.3)
    torch.testing.assert_close(found.image_embeds.norm(dim=-1), output.image_embeds.norm(dim=-1))
    z_i = normalize(output.image_embeds, dim=-1)
    angles = [torch.acos((one @ difference.T).squeeze(1)) for one in (z_i, normalize(found.image_embeds, dim=-1))]
    torch.testing.assert_close(angles[1], 0.7 * angles[0])
    torch.testing.assert_close(normalize(moved(clip, output, 1.0).image_embeds, dim=-1), difference.expand(2, -1))
    assert not torch.allclose(found.image_embeds, moved(clip, output, 0.3, target="a bird").image_embeds, rtol=1e-2)


def test_only_the_embedding_moves_and_at_zero_nothing_does(sd21):
    clip, output = text_encoder(), encoded(1)
    found, still = moved(clip, output, 0.5), moved(clip, output, 0.0)
    assert not torch.equal(found.image_embeds, output.image_embeds)
    assert all(torch.equal(found[part], output[part]) for part in PARTS[1:])
    assert all(torch.equal(still[part], output[part]) for part in PARTS)
    assert torch.equal(sample(sd21, positive=conditioned(still)), sample(sd21, positive=conditioned(output)))
    assert not torch.allclose(sample(sd21, positive=conditioned(found)), sample(sd21, positive=conditioned(output)))


@pytest.mark.parametrize("host_projects", [True, False])
@pytest.mark.parametrize("fault", ["identity", "zeros", "nan", "huge", "tiny"])
def test_a_text_encoder_without_a_trained_projection_is_refused(fault, host_projects):
    faults = {"zeros": 0.0, "nan": float("nan"), "huge": 1e6, "tiny": 1e-6}
    change = {"identity": lambda matrix: torch.eye(len(matrix))}.get(fault, lambda matrix: matrix * faults[fault])
    clip = text_encoder(change, host_projects)
    with pytest.raises(ValueError, match=r"holds no trained text_projection\. That of an SD1\.5 checkpoint"):
        moved(clip, encoded(1))
    assert not any(module._forward_hooks for module in clip.cond_stage_model.modules())


def test_other_text_encoders_are_told_what_belongs_together():
    class Other:
        """A text encoder without a projection, as T5 is."""

        tokenize, cond_stage_model = staticmethod(str), torch.nn.Linear(1, 1)

        def encode_from_tokens(self, tokens, return_pooled):
            return torch.zeros(1, 1, 1), None

    with pytest.raises(ValueError, match=r"but Linear has none\. Connect the CLIP that .*768 wide is CLIP-L"):
        moved(Other(), encoded(1))
    with pytest.raises(ValueError, match=r"clip should be a CLIP text encoder, but is NoneType\. Connect a checkpoint"):
        moved(None, encoded(1))
    with pytest.raises(ValueError, match=r"text encoder's is 24 wide and the image encoder's 40\. .*1280 ViT-bigG"):
        moved(text_encoder(), embeds(random(1, 40)))


@pytest.mark.parametrize("texts", [("", ""), ("a cat", "a cat"), ("a cat", " A  Cat ")])
def test_texts_that_say_the_same_are_refused(texts):
    with pytest.raises(ValueError, match="source and target should say different things"):
        moved(text_encoder(), encoded(1), source=texts[0], target=texts[1])
    assert moved(text_encoder(), encoded(1), source="", target="a cat").image_embeds.isfinite().all()


# --- bad input -------------------------------------------------------------------------------------------------------

NAN = float("nan")
BAD = {
    "nothing": (None, "should be a CLIP_VISION_OUTPUT .* but is NoneType"),
    "a dict": ({"image_embeds": random(1, 24)}, "but is dict. Connect CLIP Vision Encode"),
    "a tensor": (random(1, 24), "but is Tensor"),
    "no embeds": (comfy.clip_vision.Output(), "but is Output"),
    "embeds that are None": (embeds(None), r"of shape \(images, width\), but is Output with image_embeds NoneType"),
    "flat embeds": (embeds(random(24)), r"but is Output with image_embeds \(24,\)"),
    "no pictures": (embeds(random(0, 24)), r"but is Output with image_embeds \(0, 24\)"),
    "whole numbers": (embeds(torch.ones(1, 24, dtype=torch.long)), "but is Output with image_embeds"),
    "NaN": (embeds(random(1, 24) * NAN), "finite numbers, but its image_embeds has NaN"),
    "NaN tokens": (embeds(random(1, 24), last_hidden_state=random(1, 5, 8) / 0), "its last_hidden_state has NaN"),
    "zeros": (embeds(torch.zeros(1, 24)), "all zeros"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_before_anything_runs(name):
    bad, message = BAD[name]
    runs = [
        lambda: slerp(bad, encoded(1)), lambda: slerp(encoded(1), bad), lambda: mean(encoded(1), bad),
        lambda: moved(text_encoder(), bad),
    ]  # fmt: skip
    for run in runs if name != "nothing" else [*runs[:2], runs[3]]:
        with pytest.raises(ValueError, match=message) as error:
            run()
        assert "\n" not in str(error.value)
    assert slerp(encoded(1), encoded(2))[0].image_embeds.isfinite().all()


def test_outputs_of_two_encoders_are_told_apart():
    a, wide = encoded(1), encoded(1, projection_dim=40)
    message = r"a and b should come from one image encoder, but their image_embeds have the shapes \(1, 24\) and "
    with pytest.raises(ValueError, match=message + r"\(1, 40\)\. Encode all of them with the same CLIP Vision Encode"):
        slerp(a, wide)
    with pytest.raises(ValueError, match=r"output_1 and output_3 .* image_embeds have the shapes \(1, 24\) and \(1, 4"):
        mean(a, None, wide)
    others = [embeds(random(1, 24), last_hidden_state=random(1, n, 8)) for n in (5, 6)]
    with pytest.raises(ValueError, match=r"their last_hidden_state have the shapes \(1, 5, 8\) and \(1, 6, 8\)"):
        slerp(*others)
    formats = [embeds(random(1, 24), image_sizes=[(3, h, w)]) for h, w in ((16, 32), (32, 16))]
    with pytest.raises(ValueError, match=r"it saw \(3, 16, 32\) and \(3, 32, 16\).* crop to one format"):
        slerp(*formats)


def test_opposite_pictures_have_no_way_between_them():
    a, b = embeds(random(1, 24)), embeds(-2 * random(1, 24))
    with pytest.raises(ValueError, match="point in opposite directions"):
        slerp(a, b)
    with pytest.raises(ValueError, match="cancel each other"):
        mean(a, b)


@pytest.mark.parametrize("value", [-0.1, 1.1, NAN])
def test_settings_out_of_range_are_named(value):
    with pytest.raises(ValueError, match=r"t should be a number from 0 \(a\) to 1 \(b\), but is"):
        slerp(encoded(1), encoded(2), value)
    with pytest.raises(ValueError, match="theta should be a number from 0 to 1, but is"):
        moved(text_encoder(), encoded(1), value)
    with pytest.raises(ValueError, match="frames should be 1 or more, but is 0"):
        slerp(encoded(1), encoded(2), frames=0)


def test_what_shares_no_space_with_texts_is_refused():
    """SigLIP's embeds are its tokens; slerp and mean take them."""
    a, b = (embeds(random(1, 5, 8, seed=i)) for i in (1, 2))
    assert slerp(a, b)[0].image_embeds.shape == mean(a, b).image_embeds.shape == (1, 5, 8)
    with pytest.raises(ValueError, match=r"but they are \(1, 5, 8\), like those of SigLIP"):
        moved(text_encoder(), a)


# --- checkpoints that do not listen ----------------------------------------------------------------------------------


def everything(model, width):
    """Runs the three nodes with a model to look at."""
    a, b = embeds(random(1, width)), embeds(random(1, width, seed=1))
    slerp(a, b, model=model)
    mean(a, b, model=model)
    moved(text_encoder(), a, 0.0, model=model)


def test_a_checkpoint_that_ignores_unclip_is_worth_a_warning(sd15, sdxl, sd21, caplog):
    everything(sd15, 24)
    assert caplog.text.count("(BaseModel) does not read the image embeddings of unCLIP Conditioning") == 3
    caplog.clear()
    for model, width in ((sd21, WIDTH), (sdxl, 1280), (None, 24)):
        everything(model, width)
    assert not caplog.records


@pytest.mark.parametrize("family", ["StableCascade_C", "SDXLRefiner", "SDXL_instructpix2pix", "Lumina2"])
def test_other_checkpoints_that_listen_are_known(family, caplog):
    import comfy.model_base

    kind = getattr(comfy.model_base, family)

    class Patcher:
        model = kind.__new__(kind)

    torch.nn.Module.__init__(Patcher.model)
    slerp(encoded(1), encoded(2), model=Patcher)
    mean(encoded(1), model=Patcher)
    assert not caplog.records
    moved(text_encoder(), encoded(1), model=Patcher)
    assert ("does not read the image embeddings" in caplog.text) == (family == "Lumina2")


def test_embeddings_of_another_width_are_worth_a_warning(sd21, caplog):
    everything(sd21, 40)
    assert caplog.text.count(f"reads image embeddings {WIDTH} wide in unCLIP Conditioning, but these are 40 wide") == 3


def test_a_node_that_looks_at_a_model_leaves_it_alone(sd15):
    plain = sample(sd15)
    everything(sd15, 24)
    assert torch.equal(sample(sd15), plain)
