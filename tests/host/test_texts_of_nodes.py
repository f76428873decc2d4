"""What a person reads about a node, against the schema that the host gets; and the example in CONTRIBUTING.md."""

from __future__ import annotations

import asyncio
import importlib
import json
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
import reins
import torch
from comfy_api.latest import io
from reins.tests.helpers import tiny_models

ROOT = Path(__file__).parents[2]
LANGUAGES = ("en", "ko", "ja", "zh")
FILES = ("name", "control_name", "unet_name", "pooling_head", "lpips_name")  # inputs that list what lies in a folder
ADVICE = re.compile(r"\*\*Works:\*\*.*?(?:\. |\.?$)", re.MULTILINE)  # recommends an option and does not explain it
BULLET = re.compile(r"^- ((?:`\w+`(?:, )?)+): (.*)$", re.MULTILINE)  # of inputs
DEFINED = re.compile(r"`([^`]+)`: ")


async def _listed() -> list[type[io.ComfyNode]]:
    return await (await reins.comfy_entrypoint()).get_node_list()


NODES = {node.define_schema().node_id: node for node in asyncio.run(_listed())}


@pytest.fixture(params=NODES)
def schema(request: pytest.FixtureRequest) -> io.Schema:
    return NODES[request.param].define_schema()


SEEN_IN_PLACE = ("IMAGE", "LATENT", "MASK")  # inputs that lie on the picture that is sampled, place by place
NOT_IN_PLACE = ("Reins_UniConApplyJoint",)  # it reads a number beside its latent


def options_of(socket: io.Input) -> list[str]:
    """The strings to choose from, without files."""
    options = getattr(socket, "options", None) or ()
    return [option for option in options if socket.id not in FILES or option in ("none", "auto")]


def definitions(language: str) -> dict:
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def test_a_node_has_a_description_and_its_inputs_and_outputs_have_tooltips(schema):
    assert schema.node_id.startswith("Reins_")
    assert schema.category.startswith("reins/")
    assert schema.display_name
    assert schema.description
    assert all(socket.tooltip for socket in [*schema.inputs, *schema.outputs])


def test_the_help_page_of_what_lies_on_the_picture_says_what_becomes_of_tiles_of_upscalers(schema):
    kinds = {socket.get_io_type() for socket in schema.inputs}
    steers = [output.get_io_type() for output in schema.outputs] == ["MODEL"]
    if steers and kinds & {*SEEN_IN_PLACE} and schema.node_id not in NOT_IN_PLACE:
        docs = ROOT / reins.WEB_DIRECTORY / "docs"
        for page in [docs / f"{schema.node_id}.md", *docs.glob(f"{schema.node_id}/*.md")]:
            assert "UltimateSDUpscale" in page.read_text(encoding="utf-8"), page.name


def test_a_node_has_a_help_page_in_the_folder_that_the_host_serves(schema):
    assert (ROOT / reins.WEB_DIRECTORY / "docs" / f"{schema.node_id}.md").is_file()


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_node_is_translated_with_all_its_inputs_and_outputs(schema, language):
    entry = definitions(language)[schema.node_id]
    assert entry["display_name"]
    assert entry["description"]
    assert list(entry["inputs"]) == [socket.id for socket in schema.inputs]
    assert list(entry["outputs"]) == [str(i) for i in range(len(schema.outputs))]


def test_the_english_texts_are_those_of_the_schema(schema):
    assert definitions("en")[schema.node_id] == {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": {socket.id: {"name": socket.id, "tooltip": socket.tooltip} for socket in schema.inputs},
        "outputs": {str(i): {"tooltip": socket.tooltip} for i, socket in enumerate(schema.outputs)},
    }


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_translation_is_left_over(language):
    assert set(definitions(language)) == set(NODES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_option_strings_in_a_tooltip_are_the_ones_to_choose_from(schema, language):
    entry = definitions(language)[schema.node_id]
    for socket in schema.inputs:
        for option in options_of(socket):
            assert option in entry["inputs"][socket.id]["tooltip"]


def test_a_help_page_explains_every_option_and_no_other(schema):
    """In the bullet of its input, or, where no other input has that option, as the name of a row in a table."""
    page = ADVICE.sub("", (ROOT / "web" / "docs" / f"{schema.node_id}.md").read_text(encoding="utf-8"))
    options = {socket.id: options_of(socket) for socket in schema.inputs}
    shared = Counter(option for found in options.values() for option in found)
    rows = " ".join(re.findall(r"^\| ([^|]+) \|", page, re.MULTILINE))
    bullets = {name: text for names, text in BULLET.findall(page) for name in re.findall(r"\w+", names)}
    for name, found in options.items():
        for option in found:
            place = bullets[name] if shared[option] > 1 else bullets[name] + rows
            assert f"`{option}`" in place or f"*{option}*" in place, (name, option)
        if found:
            assert set(DEFINED.findall(bullets[name])) <= set(found)


def test_the_example_in_contributing_is_short_and_runs(monkeypatch, tmp_path):
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    ((folder, name, code),) = re.findall(r"```python\n# (\w+/\w+)/(\w+)\.py\n(.*?)```", text, re.DOTALL)
    assert folder == "nodes/guidance"
    assert len(code.splitlines()) <= 50
    (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    package = importlib.import_module("reins.nodes.guidance")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    module = importlib.import_module(f"reins.nodes.guidance.{name}")
    monkeypatch.delitem(sys.modules, module.__name__)
    node = module.SoftAttentionGuidance
    model = tiny_models.sd15()
    with tiny_models.forwards(model) as rows:
        (steered,) = node.execute(model, 2.0, 0.0, 1.0, "m0").result
        result = tiny_models.sample(steered, steps=2)
    assert rows == [3, 3]
    assert not torch.equal(result, tiny_models.sample(model, steps=2))
    (off,) = node.execute(model, 0.0, 0.0, 1.0, "m0").result
    assert off is model
