"""Which rows a call of the network has: read once, checked, and right or refused if another pack changes them."""

from __future__ import annotations

from unittest import mock
from uuid import uuid4

import pytest
import torch
from comfy.patcher_extension import WrappersMP
from reins.engine.layers.features import FeatureSite
from reins.engine.network import add_attention_layer, add_feature_layer, options_with_layers
from reins.engine.rows.chunk import REGIONAL, OtherPacks, add, chunks_at, chunks_of, joined, pick, pick_each, put
from reins.engine.rows.names import BATCH_ROWS, HOST_LISTS, IMAGES, NAMES_BY_NUMBER, Name, names_in, with_true_names
from reins.engine.unet import find_sites, unet_of
from reins.tests.helpers.methods import METHODS
from reins.tests.helpers.other_packs import (
    coupled,
    labelled,
    regrouped,
    tiled_by_name,
    turned_in_attention,
    turned_inside,
)
from reins.tests.helpers.tiny_models import nearly, sample, text

NAMES = {"uuids": [uuid4(), uuid4()], "cond_or_uncond": [1, 0]}
ROWS = torch.arange(12.0).reshape(6, 2)  # three chunks of two rows
IN_TEXT_ATTENTION = ("ip-adapter", "ip-adapter-masked", "nag", "pladis", "unicon")


def test_the_chunks_of_a_call_are_what_the_host_tells():
    negative, positive = chunks_of(NAMES, 6)
    assert (negative.uuid, positive.uuid) == tuple(NAMES["uuids"])
    assert (negative.index, positive.index) == (0, 1)
    assert negative.is_negative and not positive.is_negative
    assert negative.images == positive.images == (0, 1, 2)


def test_code_without_conditioning_has_one_nameless_positive():
    (chunk,) = chunks_of({}, 4)
    assert (chunk.uuid, chunk.label, chunk.is_negative, chunk.images) == (None, 0, False, (0, 1, 2, 3))


@pytest.mark.parametrize(("missing", "expected"), [("uuids", [(None, 1), (None, 0)]), ("cond_or_uncond", None)])
def test_one_list_of_the_host_is_enough(missing, expected):
    names = names_in({name: of_all for name, of_all in NAMES.items() if name != missing})
    assert names == (expected or [(uuid, 0) for uuid in NAMES["uuids"]])


def test_rows_that_are_no_multiple_of_the_chunks_are_refused():
    with pytest.raises(RuntimeError, match="as many rows for each of its 2 prompts, but another pack sends 5 rows"):
        chunks_of(NAMES, 5)


def test_lists_that_disagree_are_refused():
    with pytest.raises(RuntimeError, match="left 1 labels for 2 prompts"):
        chunks_of({**NAMES, "cond_or_uncond": [1]}, 2)


def test_tiles_of_a_picture_belong_to_it_where_an_attention_sees_one_picture_alone():
    known = chunks_of(NAMES, 4)
    tiles = chunks_at(known, {}, 12, others=OtherPacks(may_tile=True))
    assert [chunk.images for chunk in tiles] == [(0, 0, 0, 1, 1, 1)] * 2
    with pytest.raises(RuntimeError, match=r"should have the 4 rows of its call, but has 12"):
        chunks_at(known, {}, 12)


@pytest.mark.parametrize("name", REGIONAL)
def test_labels_of_added_rows_are_believed(name):
    known = chunks_of(NAMES, 4)
    chunks = chunks_at(known, {name: [1, 0, 0]}, 6)
    assert [chunk.label for chunk in chunks] == [1, 0, 0] and [chunk.index for chunk in chunks] == [0, 1, 2]
    assert chunks[1].uuid == chunks[2].uuid == NAMES["uuids"][1]
    assert all(chunk.is_regional and chunk.tokens is None for chunk in chunks)


def test_all_rows_of_a_call_with_one_prompt_are_for_that():
    (known,) = chunks_of({"uuids": [uuid4()], "cond_or_uncond": [0]}, 2)
    chunks = chunks_at((known,), {}, 6, others=OtherPacks(may_add=True))
    assert [chunk.uuid for chunk in chunks] == [known.uuid] * 3
    assert all(chunk.is_regional and chunk.tokens is None for chunk in chunks)
    with pytest.raises(RuntimeError, match="does not say of which prompt each is"):
        chunks_at((known,), {}, 6)


@pytest.mark.parametrize("labels", [[1, 0], [1, 0, 2], [1, 0, 0, 0]], ids=str)
def test_labels_that_do_not_fit_are_not_believed(labels):
    with pytest.raises(RuntimeError, match="does not say of which prompt each is"):
        chunks_at(chunks_of(NAMES, 4), {REGIONAL[0]: labels}, 6)


def test_labels_do_not_tell_apart_two_positives_that_differ():
    known = chunks_of({"uuids": [uuid4() for _ in range(3)], "cond_or_uncond": [1, 0, 0]}, 3)
    other = known[2]._replace(group=known[2].group._replace(branch="condition"))
    assert chunks_at(known, {REGIONAL[0]: [1, 0, 0, 0, 0]}, 5)
    with pytest.raises(RuntimeError, match="does not say of which prompt each is"):
        chunks_at((*known[:2], other), {REGIONAL[0]: [1, 0, 0, 0, 0]}, 5)


@pytest.mark.parametrize("numbers", [[0], [1, 2], [0, 2], [0, 1, 2]], ids=str)
def test_what_is_picked_can_be_put_back_and_added(numbers):
    picked = pick(ROWS, numbers, 3)
    by_hand = torch.cat([ROWS[2 * i : 2 * i + 2] for i in numbers])
    assert torch.equal(picked, by_hand)
    assert torch.equal(put(ROWS, numbers, 3, picked), ROWS)
    changed = put(ROWS, numbers, 3, -picked)
    assert torch.equal(pick(changed, numbers, 3), -by_hand)
    rest = [i for i in range(3) if i not in numbers]
    if rest:
        assert torch.equal(pick(changed, rest, 3), pick(ROWS, rest, 3))
        assert torch.equal(joined(3, (rest, pick(ROWS, rest, 3)), (numbers, -picked)), changed)
    assert torch.equal(add(ROWS, 3, (numbers, picked), (numbers, -3 * picked)), put(ROWS, numbers, 3, -picked))
    assert torch.equal(pick_each([ROWS, 2 * ROWS], [numbers], 3)[0][1], 2 * by_hand)


def test_terms_of_different_chunks_are_added_with_one_copy():
    of_each = ROWS.chunk(3)
    with mock.patch.object(torch, "cat", wraps=torch.cat) as cat:
        found = add(ROWS, 3, ([2], of_each[0]), ([0], of_each[1]))
    assert cat.call_count == 1
    assert torch.equal(found, torch.cat([of_each[0] + of_each[1], of_each[1], of_each[2] + of_each[0]]))


def test_terms_of_the_same_chunk_are_added_in_their_order():
    """Sums of numbers of very different size show the order."""
    small, large = torch.full_like(ROWS, 1.0), torch.full_like(ROWS, 1e30)
    part = [rows.chunk(3)[0] for rows in (small, large)]
    found = add(0 * ROWS, 3, ([0], part[1]), ([1], part[0]), ([0], -part[1]), (range(3), small), ([0], part[0]))
    assert torch.equal(found, torch.cat([2 * part[0], 2 * part[0], part[0]]))


@pytest.mark.parametrize("rows", [2, 3])
def test_part_of_the_chunks_of_a_call_keeps_the_hosts_shape_in_step(rows, sd15):
    """With rows for regions the host's shape has fewer rows than the attention."""
    seen = []

    def note(call, below):
        positives = [chunk.index for chunk in call.chunks if not chunk.is_negative]
        if not positives:  # each prompt has its own call if a pack adds rows
            return below(call)
        part = call.only(positives[1:])
        seen.append((len(part.q), part.options["activations_shape"][0], len(part.chunks)))
        return below(call)

    site = find_sites(sd15, "attn2")[0]
    model = add_attention_layer(coupled(sd15, rows, REGIONAL[0]), [site], note)
    sample(model, steps=1)
    assert seen == [(rows - 1, rows - 1, rows - 1)]


def with_names(options, numbers, rows):
    host = ([*NAMES["uuids"]], [1, 0])
    order = [Name(uuid, label) for uuid, label in zip(*host, strict=True)]
    told = {**NAMES, NAMES_BY_NUMBER: order, BATCH_ROWS: 2, HOST_LISTS: host, **options}
    found = with_true_names(told, torch.tensor(numbers, dtype=torch.float32), rows)
    return [(found["uuids"].index(NAMES["uuids"][0]) if len(found["uuids"]) > 1 else None), found.get(IMAGES)]


NUMBERED = [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_names_that_do_not_fit_the_rows_give_way_to_numbers_that_do():
    uuids = [*NAMES["uuids"], uuid4()]
    assert with_names({"uuids": uuids, "cond_or_uncond": [1, 0, 0]}, NUMBERED, 4) == [0, [[0, 1], [0, 1]]]


def test_names_in_another_order_go_before_numbers_that_stayed():
    turned = {"uuids": NAMES["uuids"][::-1], "cond_or_uncond": [0, 1]}
    assert with_names(turned, NUMBERED, 4) == [1, [[0, 1], [0, 1]]]


def test_names_do_not_tell_the_images_of_a_part_of_a_batch():
    turned = {"uuids": NAMES["uuids"][::-1], "cond_or_uncond": [0, 1]}
    with pytest.raises(RuntimeError, match="sends 2 rows, but for 4 of them"):
        with_names(turned, NUMBERED, 2)


# --- in a run of the host --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", REGIONAL)
@pytest.mark.parametrize("method", ["ip-adapter", "nag"])
def test_rows_for_regions_that_a_pack_explains_are_right(method, option, sd15):
    steer = METHODS[method]
    assert nearly(sample(steer(coupled(sd15, 2, option)), batch=2), sample(steer(sd15), batch=2))
    assert not nearly(sample(steer(sd15), batch=2), sample(sd15, batch=2), 1e-3)


def test_tiles_whose_rows_are_not_numbered_are_refused(method, sd15):
    """Some methods ask for no rows: they are right, or nothing is known of any row."""
    tiles = regrouped(sd15, tiled_by_name)
    if method in [METHODS[name] for name in IN_TEXT_ATTENTION]:
        with pytest.raises(RuntimeError, match="sends 4 rows, but for 2 of them it is known which prompt they have"):
            sample(method(tiles))


@pytest.mark.parametrize("names", [("cond_or_uncond", "uuids"), ("cond_or_uncond",)], ids=["both lists", "labels"])
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "reversed"])
def test_names_that_a_pack_rewrites_truly_are_believed(alone, names, method, sd15):
    if method is METHODS["swg"] and len(names) == 1:
        pytest.skip("its windows are several prompts with one label: refused, see below")
    sent = sample(method(regrouped(sd15, labelled(alone, names))), steps=1)
    assert nearly(sent, sample(method(sd15), steps=1))


def test_labels_alone_are_refused_if_a_list_has_several_prompts(sd15):
    model = regrouped(sd15, labelled(True, ("cond_or_uncond",)))
    with pytest.raises(RuntimeError, match="but not of which prompt, and there are several"):
        sample(METHODS["nag"](model), positive=text(1) + text(3))


def test_a_feature_whose_rows_are_not_those_of_the_call_is_refused(sd15):
    site = FeatureSite("output", 0)
    steered = add_feature_layer(sd15, site, lambda call: call.feature)
    options = {**steered.model_options["transformer_options"], **NAMES, "block": site}
    options = options_with_layers(options, unet_of(sd15), (torch.zeros(2, 4, 8, 8), torch.tensor([5.0, 5.0])))
    (add_before_skip,) = options["patches"]["output_block_patch"]
    feature, skip = torch.ones(2, 8, 4, 4), torch.ones(2, 8, 4, 4)
    assert torch.equal(add_before_skip(feature, skip, options)[0], 2 * feature)
    with pytest.raises(RuntimeError, match="A layer should have the 2 rows of its call, but has 3"):
        add_before_skip(torch.ones(3, 8, 4, 4), skip, options)


def test_chunks_that_a_pack_turns_inside_the_call_and_names_are_found(method, sd15):
    assert nearly(sample(turned_inside(method(sd15)), steps=2), sample(method(sd15), steps=2))


@pytest.mark.parametrize("kind", ["attn1", "attn2"])
def test_chunks_that_a_pack_turns_inside_an_attention_and_names_are_found(kind, method, sd15):
    assert nearly(sample(method(turned_in_attention(sd15, kind)), steps=2), sample(method(sd15), steps=2))


@pytest.mark.parametrize("name", ["pag", "nag", "ip-adapter", "h-edit", "tpg"])
def test_options_that_a_pack_cuts_down_to_the_hosts_keys_are_enough(name, sd15):
    """The layers know the call from where they were put into it."""

    def cut(executor, *args, **kwargs):
        options = {key: value for key, value in args[-1].items() if not str(key).startswith("reins")}
        return executor(*args[:-1], options, **kwargs)

    model = METHODS[name](sd15).clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "another pack", cut)
    assert nearly(sample(model, steps=2), sample(METHODS[name](sd15), steps=2))


def test_rows_that_another_wrapper_sends_alone_without_a_word_are_refused(sd15):
    def alone(executor, x, t, context, *rest, **kwargs):
        outs = [executor(x[i : i + 2], t[i : i + 2], context[i : i + 2], *rest, **kwargs) for i in (0, 2)]
        return torch.cat(outs)

    model = sd15.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "another pack", alone)
    with pytest.raises(RuntimeError, match="as many rows for each of its 2 prompts, but another pack sends 2 rows"):
        sample(METHODS["ip-adapter"](model), batch=2, steps=1)


def test_numbers_that_a_pack_drops_are_missed_if_rows_are_gone(sd15):
    def known_by_name(apply_model, args):
        conds = {"c_crossattn": args["c"]["c_crossattn"], "transformer_options": args["c"]["transformer_options"]}
        rows = [slice(i, i + 1) for i in range(len(args["input"]))]
        outs = [
            apply_model(
                args["input"][row], args["timestep"][row], **{**conds, "c_crossattn": conds["c_crossattn"][row]}
            )
            for row in rows
        ]
        return torch.cat(outs)

    with pytest.raises(RuntimeError, match="sends 1 rows, but for 0 of them"):
        sample(METHODS["ip-adapter"](regrouped(sd15, known_by_name)), steps=1)


def test_numbers_that_fit_help_where_labels_alone_do_not(sd15):
    """Two positives, each chunk alone with all its tensors, only the labels rewritten."""

    def alone(apply_model, args):
        count, options, outs = len(args["cond_or_uncond"]), args["c"]["transformer_options"], []
        for i in range(count):
            conds = {k: v.chunk(count)[i] if torch.is_tensor(v) else v for k, v in args["c"].items()}
            conds["transformer_options"] = {**options, "cond_or_uncond": [options["cond_or_uncond"][i]]}
            outs.append(apply_model(args["input"].chunk(count)[i], args["timestep"].chunk(count)[i], **conds))
        return torch.cat(outs)

    positive = text(1) + text(3)
    for name in ("nag", "ip-adapter"):
        sent = sample(METHODS[name](regrouped(sd15, alone)), positive=positive, steps=1)
        assert nearly(sent, sample(METHODS[name](sd15), positive=positive, steps=1))


def test_rows_that_are_no_tiles_are_refused_in_self_attention_too(sd15):
    """As many tokens in twice the rows: a pack that appends the rows of a reference."""
    model = sd15.clone()
    model.set_model_attn1_patch(lambda q, k, v, options: tuple(torch.cat([part, part]) for part in (q, k, v)))
    model.set_model_attn1_output_patch(lambda out, options: out.chunk(2)[0])
    with pytest.raises(RuntimeError, match=r"A layer should have the \d rows of its call, but has \d"):
        sample(METHODS["seg"](model), steps=1)


def test_a_list_of_the_host_that_a_pack_takes_away_is_missed(sd15):
    def forget(name):
        def call(executor, *args, **kwargs):
            options = {key: value for key, value in args[5].items() if key != name}
            return executor(*args[:5], options, *args[6:], **kwargs)

        model = sd15.clone()
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "another pack", call)
        return model

    for name in ("uuids", "cond_or_uncond"):
        for method in ("pag", "nag"):
            with pytest.raises(RuntimeError, match="another pack has taken that out of the options"):
                sample(METHODS[method](forget(name)), steps=1)


def test_options_made_anew_around_the_call_are_refused(sd15):
    def anew(apply_model, args):
        given, kept = args["c"]["transformer_options"], ("uuids", "cond_or_uncond", "sigmas", "wrappers")
        options = {name: given[name] for name in kept}
        return apply_model(args["input"], args["timestep"], **{**args["c"], "transformer_options": options})

    with pytest.raises(RuntimeError, match="nothing is left of our nodes"):
        sample(METHODS["nag"](regrouped(sd15, anew)), steps=1)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 1, 3)], ids=["branches apart", "pairs"])
def test_a_unicon_whose_branches_a_pack_sends_apart_is_refused(order, sd15):
    def apart(executor, x, t, context, y, control, options, **kwargs):
        outs = []
        for part in (order[:2], order[2:]):
            lists = {name: [options[name][i] for i in part] for name in ("cond_or_uncond", "uuids")}
            inputs = [torch.cat([value.chunk(4)[i] for i in part]) for value in (x, t, context)]
            outs += executor(*inputs, y, control, {**options, **lists}, **kwargs).chunk(2)
        return torch.cat([outs[order.index(i)] for i in range(4)])

    model = METHODS["unicon"](sd15).clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "another pack", apart)
    if order == (0, 2, 1, 3):  # each image with its condition: that is all a UniCon needs
        assert nearly(sample(model, steps=1), sample(METHODS["unicon"](sd15), steps=1))
    else:
        with pytest.raises(RuntimeError, match="needs image and condition together"):
            sample(model, steps=1)


@pytest.mark.parametrize("name", ["nag", "pladis", "unicon"])
def test_keys_with_more_rows_than_queries_are_refused(name, sd15):
    """Reference attention and the like add rows to one of the two."""
    model = sd15.clone()
    model.set_model_attn2_patch(lambda q, k, v, options: (q, torch.cat([k, k[:1]]), torch.cat([v, v[:1]])))
    model.set_model_attn2_replace(lambda q, k, v, options: q, "input", 1)  # as packs that can do with such rows
    found = {"nag": "1 rows should keep them.*makes 2", "pladis": "2 of queries, 3 of keys and 3 of values"}
    match = found.get(name, "4 of queries, 5 of keys and 5 of values")
    with pytest.raises(RuntimeError, match=rf"^(?!.*(reference|merging)).*{match}.*attention couple"):
        sample(METHODS[name](model), steps=1)


@pytest.mark.parametrize("name", ["pag", "sag"])
def test_tokens_of_other_pictures_among_the_keys_are_named_as_such(name, sd15):
    model = sd15.clone()
    model.set_model_attn1_patch(lambda q, k, v, options: (q, torch.cat([k, k], 1), torch.cat([v, v], 1)))
    with pytest.raises(RuntimeError, match=r"^(?!.*(merg|couple)).*adds tokens of other pictures.*reference attention"):
        sample(METHODS[name](model), steps=1)
