"""--set: which input it means, which values, and what is refused before anything runs."""

from __future__ import annotations

import re
from itertools import product

import pytest

pytest.importorskip("aiohttp", reason="the client needs aiohttp (requirements-dev.txt)")

from reins.sweep.errors import SweepError
from reins.sweep.needs import missing, needs_of
from reins.sweep.plan import make_plan, read_axes, seeds
from reins.sweep.where import find_where
from reins.tests.helpers.sweeps import INFO, small_graph


def plan(*texts: str):
    graph = small_graph()
    return make_plan(graph, read_axes(graph, texts), INFO)


def values(*texts: str) -> list[tuple]:
    return [row.values for row in plan(*texts).rows]


@pytest.mark.parametrize(
    ("label", "place"),
    [
        ("3.seed", ("3", "seed")),
        ("KSampler.seed", ("3", "seed")),
        ("ksampler.seed", ("3", "seed")),
        ("Positive.text", ("11", "text")),
        ("Perturbed.scale", ("10", "scale")),
        ("Reins_Perturbed.scale", ("10", "scale")),
        ("PAG – Perturbed-Attention Guidance.scale", ("10", "scale")),
        ("PAG.scale", ("10", "scale")),
        ("PAG.mode.size", ("10", "mode.size")),
    ],
)
def test_a_node_is_found_by_title_id_class_or_a_word_of_them(label, place):
    assert find_where(small_graph(), label).places == (place,)


def test_a_plus_sign_joins_places_that_get_the_same_value():
    assert find_where(small_graph(), "11.text+Negative.text").places == (("11", "text"), ("12", "text"))
    graph = small_graph()
    graph["11"]["_meta"]["title"] = "text+style"
    assert find_where(graph, "text+style.text").places == (("11", "text"),)


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("SEG.scale", "there is no node SEG; there are 3 (KSampler), 4 (Load, Loader), 10 ("),
        ("KSampler.sed", "node 3 (KSampler) has no input sed; there are seed, steps, cfg, sampler_name"),
        ("KSampler.model", "model is linked to node 10 (PAG – Perturbed-Attention Guidance) and has no value to set"),
        ("CLIPTextEncode.text", "11 (Positive), 12 (Negative). Name one by its id, or all by 11.text+12.text"),
        ("seed", "seed is no place in the workflow: write NODE.INPUT"),
        (".seed", "is no place in the workflow"),
    ],
)
def test_a_place_that_is_none_is_refused_with_what_there_is(label, said):
    with pytest.raises(SweepError, match=re.escape(said)):
        find_where(small_graph(), label)


def test_the_rows_are_the_product_in_the_order_of_the_options():
    expected = list(product([0.0, 1.5, 3.0], [0, 1, 2, 3], ["heun", "euler"]))
    assert values("PAG.scale=0,1.5,3", "KSampler.seed=0:4", "KSampler.sampler_name=heun,euler") == expected
    last = plan("PAG.scale=0,1.5,3", "KSampler.seed=0:4").rows[-1].graph
    assert (last["10"]["inputs"]["scale"], last["3"]["inputs"]["seed"], last["3"]["inputs"]["steps"]) == (3.0, 3, 4)
    assert seeds(last) == [3]
    graph = small_graph()
    make_plan(graph, read_axes(graph, ["PAG.scale=0,1.5"]), INFO)
    assert graph == small_graph()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("KSampler.seed=0:64", list(range(64))),
        ("KSampler.seed=0:10:4", [0, 4, 8]),
        ("KSampler.seed=9:0:-3", [9, 6, 3]),
        ("KSampler.seed=5,0:3", [5, 0, 1, 2]),
        ("PAG.scale=0:1:0.1", [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]),
        ("PAG.scale=0:2.5", [0.0, 1.0, 2.0]),
        ("PAG.share=true,False", [True, False]),
        ('PAG.layers=m0,"m0, u2"', ["m0", "m0, u2"]),
        ("Positive.text=0:3", ["0:3"]),
        ("Positive.text=", [""]),
        ('Positive.text="a dog, running",a = b', ["a dog, running", "a = b"]),
        ("PAG.mode.size=1,2", [1, 2]),
        ("LoadImage.image=folder/other.png", ["folder/other.png"]),
    ],
)
def test_values_are_read_as_the_input_takes_them(text, expected):
    found = [row[0] for row in values(text)]
    assert found == expected
    assert list(map(type, found)) == list(map(type, expected))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("KSampler.sampler_name=eulr", "KSampler.sampler_name has no option eulr; there are euler, heun, dpmpp_2m"),
        ("KSampler.steps=0", "KSampler.steps takes numbers from 1 to 100, found 0"),
        ("KSampler.seed=1.5", "KSampler.seed takes whole numbers, found 1.5"),
        ("KSampler.seed=", "KSampler.seed takes whole numbers, found nothing"),
        ("PAG.scale=strong", "PAG.scale takes numbers, found strong"),
        ("PAG.scale=nan", "PAG.scale takes finite numbers, found nan"),
        ("PAG.share=maybe", "PAG.share is true or false, found maybe"),
        ("KSampler.seed=4:4", "4:4 is a range with no number in it"),
        ("KSampler.seed=0:9:0", "0:9:0 is a range with no number in it"),
        ("KSampler.seed=0:99999999", "more than 1000000 numbers"),
        ("KSampler.seed", "has no values: write WHERE=VALUES"),
        ("Load.name=three.safetensors", "has no option three.safetensors; there are one.safetensors, two.safetensors"),
    ],
)
def test_a_value_that_the_input_does_not_take_is_refused(text, said):
    with pytest.raises(SweepError, match=re.escape(said)):
        plan(text)


def test_a_table_has_rows_that_belong_together(tmp_path):
    table = tmp_path / "prompts.csv"
    table.write_text('Positive.text, KSampler.seed\n"a cat, asleep",1\na dog,2\n\n', encoding="utf-8-sig")
    expected = [("a cat, asleep", 1, 0.0), ("a cat, asleep", 1, 3.0), ("a dog", 2, 0.0), ("a dog", 2, 3.0)]
    assert values(f"@{table}", "PAG.scale=0,3") == expected


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("Positive.text,KSampler.seed\na cat\n", r"row 2: 2 values were expected, 1 were found"),
        ("Positive.text\n", r"has no row of values"),
        ("Positive.words\na cat\n", r"has no input words; there are text"),
        ("Positive.text,KSampler.seed\na cat,0:4\n", r"one value in each cell"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(content, said, tmp_path):
    (tmp_path / "prompts.csv").write_text(content, encoding="utf-8")
    with pytest.raises(SweepError, match=said):
        plan(f"@{tmp_path / 'prompts.csv'}")


def test_a_missing_table_an_input_that_is_set_twice_and_too_many_prompts_are_refused(tmp_path):
    with pytest.raises(SweepError, match=r"nowhere\.csv cannot be read"):
        plan(f"@{tmp_path / 'nowhere.csv'}")
    with pytest.raises(SweepError, match=r"KSampler\.seed and 3\.seed set the same input, seed of 3"):
        plan("KSampler.seed=1", "3.seed=2")
    with pytest.raises(SweepError, match="these are 2000000 prompts"):
        plan("KSampler.seed=0:20000", "KSampler.steps=1:101")


def test_equal_rows_count_once():
    assert values("PAG.scale=1,1.0,2") == [(1.0,), (2.0,)]


def test_places_that_are_set_together_have_to_read_a_text_alike():
    assert values("11.text+12.text=a,b") == [("a",), ("b",)]
    with pytest.raises(SweepError, match="is not the same value at each"):
        plan("11.text+KSampler.seed=3")


def test_a_node_that_the_server_lacks_is_refused():
    graph = small_graph()
    with pytest.raises(SweepError, match="that ComfyUI has no node KSampler; there are Loader"):
        make_plan(graph, read_axes(graph, ["KSampler.seed=1"]), {"Loader": INFO["Loader"]})


def test_a_server_is_asked_for_every_node_file_and_option_of_the_rows():
    needs = needs_of(plan("Load.name=one.safetensors,two.safetensors", "KSampler.seed=0:3").rows)
    assert missing(needs, INFO) == []
    assert len(needs) == len(set(needs))
    poorer = {**INFO, "Loader": {"input": {"required": {"name": [["one.safetensors"], {}]}}}}
    del poorer["LoadImage"]
    assert missing(needs, poorer) == [
        "no node LoadImage",
        "no two.safetensors for Loader.name; there are one.safetensors",
    ]


def test_what_a_row_replaces_is_not_asked_for():
    graph = small_graph()
    graph["4"]["inputs"]["name"] = "gone.safetensors"
    axes = read_axes(graph, ["Load.name=one.safetensors"])
    assert missing(needs_of(make_plan(graph, axes, INFO).rows), INFO) == []
    plain = make_plan(graph, [], INFO)
    assert missing(needs_of(plain.rows), INFO) == [
        "no gone.safetensors for Loader.name; there are one.safetensors, two.safetensors"
    ]
