"""Help pages, translations, README and examples: complete, consistent, without dead links and without traces."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "web" / "docs"
EXAMPLES = ROOT / "example_workflows"
LANGUAGES = ("en", "ko", "ja", "zh")
SCRIPTS = {"ko": r"[가-힣]", "ja": r"[ぁ-んァ-ン]", "zh": r"[一-鿿]"}
README = ROOT / "README.md"
WHICH_METHOD = ROOT / "docs" / "which_method.md"
GUIDES = sorted((ROOT / "docs").glob("*.md"))
FRONT = [README, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *GUIDES, ROOT / "demo" / "README.md"]
PAGES = [*FRONT, *sorted(DOCS.rglob("*.md"))]
TEXTS = [
    *PAGES, ROOT / "pyproject.toml", *sorted(DOCS.rglob("*.svg")),
    *sorted((ROOT / "docs").rglob("*.svg")), *sorted((ROOT / "locales").rglob("*.json")),
    *sorted(EXAMPLES.glob("*.json")), *sorted((ROOT / "subgraphs").glob("*.json")),
    *sorted((ROOT / "demo" / "weights").rglob("*.md")), ROOT / "bench" / "RESULTS.md",
]  # fmt: skip
README_LINES = 150
FLOORS = ("engine", "models", "nodes")
ADDRESS = re.compile(r"(?:https?://|\b(?:github\.com|huggingface\.co)/)[^\s<>()\[\]\"'`\\]+")
KNOWN = re.compile(  # places that exist; whoever adds one has been there
    r"""(https?://)?(
    arxiv\.org/abs/\d{4}\.\d{5}
    | github\.com/(comfyanonymous/ComfyUI | cubiq/ComfyUI_IPAdapter_plus | dvlab-research/ControlNeXt
                 | Zhendong-Wang/Prompt-Diffusion | huggingface/diffusers | Shakker-Labs/ComfyUI-IPAdapter-Flux)
    | huggingface\.co/Comfy-Org/stable-diffusion-v1-5-archive
    | huggingface\.co/(InstantX/(SD3\.5-Large|FLUX\.1-dev)-IP-Adapter | XLabs-AI/flux-ip-adapter(-v2)?
                      | Comfy-Org/sigclip_vision_384 | google/siglip-so400m-patch14-384
                      | openai/clip-vit-large-patch14 | h94/IP-Adapter(-FaceID)? | ostris/ip-composition-adapter
                      | Kwai-Kolors/Kolors-IP-Adapter-(FaceID-)?Plus)
      (/resolve/main/[\w.-]+)?
    | huggingface\.co/(Comfy-Org/(stable-diffusion-3\.5-fp8 | flux1-dev | z_image | z_image_turbo
                                  | Wan_2\.1_ComfyUI_repackaged | stable-diffusion-v1-5-archive)
                      | comfyanonymous/flux_text_encoders | CompVis/stable-diffusion-v-1-4-original
                      | stabilityai/(stable-diffusion-xl-base-1\.0 | sdxl-turbo | stable-diffusion-2-1-unclip
                                     | stable-video-diffusion-img2vid-xt-1-1)
                      | h94/IP-Adapter | Pbihao/ControlNeXt | zhendongw/prompt-diffusion)
      /resolve/main/([\w.-]+/)*[\w.%-]+\.(safetensors | ckpt | bin)
    | kwonminki\.github\.io/Asyrp/ | lixirui142\.github\.io/unicon-diffusion/
    | www\.w3\.org/2000/svg
    | (localhost | 127\.0\.0\.1)(:\d+)?(/.*)?
    )[.,:;]?""",
    re.VERBOSE,
)
TRACE = re.compile(r"/work\b|/root\b|/tmp\b|/home/|\b(TODO|FIXME|XXX)\b")
CHECKPOINT_LOADERS = (
    "CheckpointLoaderSimple",
    "ImageOnlyCheckpointLoader",
    "unCLIPCheckpointLoader",
    "UNETLoader",
    "Reins_DemoModel",
)
LOADERS = {  # how many of the first widgets name files
    **dict.fromkeys(CHECKPOINT_LOADERS, 1),
    "CLIPVisionLoader": 1, "LoadImage": 1, "Reins_IPAdapterLoader": 1, "Reins_ControlNeXtLoader": 2,
    "Reins_UniConLoader": 1, "ControlNetLoader": 1, "Reins_PromptDiffusionLoader": 1, "CLIPLoader": 1,
    "DualCLIPLoader": 2, "VAELoader": 1,
}  # fmt: skip
NO_FILE = "none"
SHIPPED = (
    "base",
    "dit",
    *(
        f"reins-demo-{kind}.safetensors"
        for kind in ("ip-adapter", "dit-ip-adapter", "controlnet", "controlnext", "unicon", "prompt-diffusion")
    ),
)
FILES = {  # of each other file that a workflow names: licence, size, folder
    "v1-5-pruned-emaonly-fp16.safetensors": ("CreativeML OpenRAIL-M", "2.1 GB", "models/checkpoints"),
    "sd-v1-4.ckpt": ("CreativeML OpenRAIL-M", "4.3 GB", "models/checkpoints"),
    "sd_xl_base_1.0.safetensors": ("CreativeML Open RAIL++-M", "6.9 GB", "models/checkpoints"),
    "sd_xl_turbo_1.0_fp16.safetensors": ("Non-Commercial", "6.9 GB", "models/checkpoints"),
    "sd3.5_medium_incl_clips_t5xxlfp8scaled.safetensors": ("Stability AI Community", "11.6 GB", "models/checkpoints"),
    "sd3.5_large_fp8_scaled.safetensors": ("Stability AI Community", "14.9 GB", "models/checkpoints"),
    "flux1-dev.safetensors": ("Non-Commercial License", "23.8 GB", "models/diffusion_models"),
    "clip_l.safetensors": ("Apache 2.0", "246 MB", "models/text_encoders"),
    "t5xxl_fp8_e4m3fn_scaled.safetensors": ("Apache 2.0", "5.2 GB", "models/text_encoders"),
    "ae.safetensors": ("Apache 2.0", "335 MB", "models/vae"),
    "z_image_bf16.safetensors": ("Apache 2.0", "12.3 GB", "models/diffusion_models"),
    "qwen_3_4b.safetensors": ("Apache 2.0", "8.0 GB", "models/text_encoders"),
    "wan2.1_t2v_1.3B_fp16.safetensors": ("Apache 2.0", "2.8 GB", "models/diffusion_models"),
    "umt5_xxl_fp8_e4m3fn_scaled.safetensors": ("Apache 2.0", "6.7 GB", "models/text_encoders"),
    "wan_2.1_vae.safetensors": ("Apache 2.0", "254 MB", "models/vae"),
    "svd_xt_1_1.safetensors": ("Stability AI's own", "4.8 GB", "models/checkpoints"),
    "sd21-unclip-h.ckpt": ("OpenRAIL++-M", "8.0 GB", "models/checkpoints"),
    "prompt-diffusion-sd15.ckpt": ("state no licence", "5.7 GB", "models/controlnet"),
    "controlnext-sd15-pose.safetensors": ("Apache 2.0", "21 MB", "models/controlnext"),
    "controlnext-sdxl-anime-canny.safetensors": ("Apache 2.0", "14 MB", "models/controlnext"),
    "controlnext-sdxl-anime-canny-unet.safetensors": ("Apache 2.0", "205 MB", "models/controlnext"),
    "controlnext-svd-v2.bin": ("Apache 2.0", "14 MB", "models/controlnext"),
    "controlnext-svd-v2-unet.bin": ("Apache 2.0", "6.1 GB", "models/controlnext"),
    "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors": ("MIT", "2.5 GB", "models/clip_vision"),
    "sigclip_vision_patch14_384.safetensors": ("Apache 2.0", "857 MB", "models/clip_vision"),
    "model.safetensors": ("MIT", "1.7 GB", "models/clip_vision"),
    "ip-adapter-plus_sd15.safetensors": ("Apache 2.0", "98 MB", "models/ipadapter"),
    "ip-adapter-plus_sdxl_vit-h.safetensors": ("Apache 2.0", "850 MB", "models/ipadapter"),
    "ip-adapter_diffusers.safetensors": ("Stability AI Community", "1.6 GB", "models/ipadapter"),
    "ip_adapter.safetensors": ("Non-Commercial License", "1.06 GB", "models/ipadapter"),
    "ip-adapter.bin": ("Non-Commercial License", "5.3 GB", "models/ipadapter"),
    **dict.fromkeys(("unicon-depth", "unicon-pose"), ("state no licence", "300 MB", "models/unicon")),
    "example.png": ("comes with ComfyUI",),
    "astronaut.jpg": ("public domain", "43 kB", "the folder input"),
    "astronaut_pose.png": ("4 kB", "the folder input"),
    "astronaut_poses.webp": ("13 kB", "the folder input"),
    "astronaut_silhouette.png": ("18 kB", "the folder input"),
    "motorcycle.jpg": ("Middlebury", "53 kB", "the folder input"),
    "motorcycle_depth.png": ("54 kB", "the folder input"),
    "coffee.jpg": ("CC0", "45 kB", "the folder input"),
    "chelsea.jpg": ("CC0", "22 kB", "the folder input"),
}
ADDRESSES = {  # of the same files on Hugging Face, repository and path; each is named by a public document
    "v1-5-pruned-emaonly-fp16.safetensors": (
        "Comfy-Org/stable-diffusion-v1-5-archive", "v1-5-pruned-emaonly-fp16.safetensors",
    ),
    "sd-v1-4.ckpt": ("CompVis/stable-diffusion-v-1-4-original", "sd-v1-4.ckpt"),
    "sd_xl_base_1.0.safetensors": ("stabilityai/stable-diffusion-xl-base-1.0", "sd_xl_base_1.0.safetensors"),
    "sd_xl_turbo_1.0_fp16.safetensors": ("stabilityai/sdxl-turbo", "sd_xl_turbo_1.0_fp16.safetensors"),
    "svd_xt_1_1.safetensors": ("stabilityai/stable-video-diffusion-img2vid-xt-1-1", "svd_xt_1_1.safetensors"),
    "sd21-unclip-h.ckpt": ("stabilityai/stable-diffusion-2-1-unclip", "sd21-unclip-h.ckpt"),
    "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors": ("h94/IP-Adapter", "models/image_encoder/model.safetensors"),
    "ip-adapter-plus_sd15.safetensors": ("h94/IP-Adapter", "models/ip-adapter-plus_sd15.safetensors"),
    "ip-adapter-plus_sdxl_vit-h.safetensors": ("h94/IP-Adapter", "sdxl_models/ip-adapter-plus_sdxl_vit-h.safetensors"),
    "controlnext-sd15-pose.safetensors": (
        "Pbihao/ControlNeXt", "ControlNeXt-SD1.5/deepfashion_multiview/controlnet.safetensors",
    ),
    "controlnext-svd-v2.bin": ("Pbihao/ControlNeXt", "ControlNeXt-SVD/v2/controlnet.bin"),
    "controlnext-svd-v2-unet.bin": ("Pbihao/ControlNeXt", "ControlNeXt-SVD/v2/unet.bin"),
    "prompt-diffusion-sd15.ckpt": ("zhendongw/prompt-diffusion", "network-step%3D04999.ckpt"),
    "ae.safetensors": ("Comfy-Org/z_image_turbo", "split_files/vae/ae.safetensors"),
    "clip_l.safetensors": ("comfyanonymous/flux_text_encoders", "clip_l.safetensors"),
    "flux1-dev.safetensors": ("Comfy-Org/flux1-dev", "flux1-dev.safetensors"),
    "ip-adapter.bin": ("InstantX/FLUX.1-dev-IP-Adapter", "ip-adapter.bin"),
    "ip-adapter_diffusers.safetensors": ("InstantX/SD3.5-Large-IP-Adapter", "ip-adapter_diffusers.safetensors"),
    "ip_adapter.safetensors": ("XLabs-AI/flux-ip-adapter-v2", "ip_adapter.safetensors"),
    "model.safetensors": ("openai/clip-vit-large-patch14", "model.safetensors"),
    "qwen_3_4b.safetensors": ("Comfy-Org/z_image_turbo", "split_files/text_encoders/qwen_3_4b.safetensors"),
    "sd3.5_large_fp8_scaled.safetensors": ("Comfy-Org/stable-diffusion-3.5-fp8", "sd3.5_large_fp8_scaled.safetensors"),
    "sd3.5_medium_incl_clips_t5xxlfp8scaled.safetensors": (
        "Comfy-Org/stable-diffusion-3.5-fp8", "sd3.5_medium_incl_clips_t5xxlfp8scaled.safetensors",
    ),
    "sigclip_vision_patch14_384.safetensors": (
        "Comfy-Org/sigclip_vision_384", "sigclip_vision_patch14_384.safetensors",
    ),
    "t5xxl_fp8_e4m3fn_scaled.safetensors": ("comfyanonymous/flux_text_encoders", "t5xxl_fp8_e4m3fn_scaled.safetensors"),
    "umt5_xxl_fp8_e4m3fn_scaled.safetensors": (
        "Comfy-Org/Wan_2.1_ComfyUI_repackaged", "split_files/text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors",
    ),
    "wan2.1_t2v_1.3B_fp16.safetensors": (
        "Comfy-Org/Wan_2.1_ComfyUI_repackaged", "split_files/diffusion_models/wan2.1_t2v_1.3B_fp16.safetensors",
    ),
    "wan_2.1_vae.safetensors": ("Comfy-Org/Wan_2.1_ComfyUI_repackaged", "split_files/vae/wan_2.1_vae.safetensors"),
    "z_image_bf16.safetensors": ("Comfy-Org/z_image", "split_files/diffusion_models/z_image_bf16.safetensors"),
}  # fmt: skip
NO_ADDRESS = (  # no public document names their path: the note says where to look
    "controlnext-sdxl-anime-canny.safetensors", "controlnext-sdxl-anime-canny-unet.safetensors",
    "unicon-depth", "unicon-pose",
)  # fmt: skip
RENAMED = ("saved under this name", "renamed", "rename the download")
SHORT, LONGER = 350, 600  # characters of a note: for the demo model, and for files that are downloaded
MOST = {  # that need more: five next steps, or many long names of files
    "_start_here": 850, "everything_sd15": 950, "controlnext_sdxl": 720,
    "ip_adapter_flux_instantx": 720, "ip_adapter_flux_xlabs": 700, "unicon_sd15_depth_and_pose": 650,
}  # fmt: skip
LARGE = "# "  # a heading of the first rank, the largest letters that the editor has
OF_THE_HOST = "example.png"  # comes with ComfyUI
START = "_start_here"  # the example to open first
POINTER = f"New here? Open *{START}* first."
LINK = re.compile(r"\]\(([^)\s]+)\)")
TRANSLATED = sorted(DOCS.glob("*/*.md"))
BLOCK = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]+`")
LISTED = re.compile(r"^- ((?:`\w+`(?:, )?)+:|`[^`\n]* [^`\n]*`)", re.MULTILINE)  # an input or an error
QUOTED = re.compile(r'"[^"\n]+"')
EMPHASIS = re.compile(r"(?<!\*)(\*{1,2})([^*\n]+)\1(?!\*)")
NUMBER = re.compile(r"\d+(?:\.\d+)*(?![\d.]* [bm]illion)")  # of these Asian languages count other powers of ten


def definitions(language: str) -> dict[str, Any]:
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


NODES = definitions("en")
SOURCES = {  # of nodes
    file: file.read_text(encoding="utf-8")
    for folder in ("nodes", "demo/world")
    for file in sorted((ROOT / folder).rglob("*.py"))
}
GUIDANCE = [  # the nodes of methods: their pages have formula, paper and cost
    node
    for source in SOURCES.values()
    for node in re.findall(r'node_id="(\w+)",\s+display_name="[^"]+",\s+category="reins/guidance"', source)
]
METHODS = [  # those that a person chooses between; the others load, save and prepare for them
    *GUIDANCE, "Reins_ControlNeXtApply", "Reins_UniConApply", "Reins_UniConApplyJoint", "Reins_UniConSampler",
    "Reins_PromptDiffusionExample", "Reins_HSpaceEdit", "Reins_AsyrpSampler", "Reins_IPAdapter",
    "Reins_IPAdapterApply", "Reins_CLIPVisionSlerp", "Reins_CLIPVisionMean", "Reins_CLIPTextDiff",
    "Reins_GuidanceScope",
]  # fmt: skip


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def leaves(tree: object, path: str = "") -> Iterator[tuple[str, str]]:
    """(place, text) of every text in a translation."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{path}/{key}")
    else:
        yield path, tree


def messages() -> set[str]:
    """The errors and warnings of the code, with an ellipsis for each value that is filled in."""
    found = set()
    for folder in ("nodes", "engine", "demo/world"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if (
                    isinstance(node, ast.Call)
                    and ast.unparse(node.func) in ("ValueError", "RuntimeError", "logger.warning")
                    and node.args
                ):
                    found.add(_pattern(node.args[0]))
    return found


def _pattern(text: ast.expr) -> str:
    parts = text.values if isinstance(text, ast.JoinedStr) else [text]
    shown = "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)
    return re.sub("…+", "…", shown)


def english(page: Path) -> str:
    """The page that a translated one is made from."""
    return (DOCS / f"{page.parent.name}.md").read_text(encoding="utf-8")


def sections(page: str) -> list[str]:
    return page.split("\n## ")


def kinds(page: str) -> list[tuple[object, int]]:
    """What each line is: heading, bullet, picture, row of a table with its cells, text, nothing."""
    lines = BLOCK.sub("", page).splitlines()
    return [(re.match(r"#+ |- |!|\||", line)[0] or bool(line), line.count("|")) for line in lines]


def test_every_node_has_a_help_page_and_every_page_a_node():
    assert {page.stem for page in DOCS.glob("*.md")} == set(NODES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_translation_covers_the_same_nodes_inputs_and_outputs(language):
    places = {place for place, _ in leaves(definitions(language))}
    assert places == {place for place, _ in leaves(NODES)}


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_translated_text_is_empty_or_holds_signs_that_the_frontend_would_interpret(language):
    for place, text in leaves(definitions(language)):
        assert text.strip() == text != "", place
        assert not set("{}@|$") & set(text), place


@pytest.mark.parametrize("language", SCRIPTS)
def test_names_descriptions_and_tooltips_are_in_the_language_of_their_folder(language):
    english = dict(leaves(NODES))
    for place, text in leaves(definitions(language)):
        assert re.search(SCRIPTS[language], text), place
        assert text != english[place], place


@pytest.mark.parametrize("node", NODES)
def test_a_help_page_explains_every_input(node):
    page = (DOCS / f"{node}.md").read_text(encoding="utf-8")
    listed = page.split("## Inputs")[1].split("\n## ")[0]
    names = " ".join(re.findall(r"^- ((?:`\w+`(?:, )?)+): ", listed, re.MULTILINE))
    assert re.findall(r"\w+", names) == list(NODES[node]["inputs"])


@pytest.mark.parametrize("node", NODES)
def test_a_help_page_says_when_to_use_the_node_and_what_may_go_wrong(node):
    page = (DOCS / f"{node}.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", page, re.MULTILINE)
    for heading in ("Inputs", "When to use it", "If something goes wrong"):
        assert heading in headings


def test_every_node_of_the_guidance_category_counts_as_a_method():
    assert len(GUIDANCE) == sum(source.count('"reins/guidance"') for source in SOURCES.values())


@pytest.mark.parametrize("node", GUIDANCE)
def test_the_help_page_of_a_method_has_formula_paper_and_cost(node):
    page = (DOCS / f"{node}.md").read_text(encoding="utf-8")
    assert "\n## Order, cost, guiders\n" in page
    assert "```" in page.split("## Formula")[1].split("## Inputs")[0]
    assert re.search(r"https://arxiv\.org/abs/\d{4}\.\d{5}\)", page)


@pytest.mark.parametrize("node", NODES)
def test_errors_quoted_in_a_help_page_are_those_of_the_code(node):
    trouble = (DOCS / f"{node}.md").read_text(encoding="utf-8").split("## If something goes wrong")[1]
    quoted = re.findall(r"^- `([^`]+)`", trouble, re.MULTILINE)
    raised = [re.compile(re.escape(message).replace("…", ".+")) for message in messages() if message != "…"]
    assert not [text for text in quoted if not any(message.fullmatch(text) for message in raised)]


def test_a_help_page_is_translated_into_every_language_or_into_none():
    languages = {}
    for page in TRANSLATED:
        languages.setdefault(page.parent.name, set()).add(page.stem)
    assert languages
    assert set(languages) <= set(NODES)
    assert {node: set(SCRIPTS) for node in languages} == languages


@pytest.mark.parametrize("page", TRANSLATED, ids=name_of)
def test_a_translated_help_page_has_the_lines_and_formulas_of_the_english_one(page):
    text = page.read_text(encoding="utf-8")
    assert len(sections(text)) == len(sections(english(page)))
    assert kinds(text) == kinds(english(page))
    assert BLOCK.findall(text) == BLOCK.findall(english(page))


@pytest.mark.parametrize("page", TRANSLATED, ids=name_of)
def test_a_translated_help_page_keeps_names_options_errors_links_and_numbers(page):
    for section, source in zip(sections(page.read_text(encoding="utf-8")), sections(english(page)), strict=True):
        assert LISTED.findall(section) == LISTED.findall(source)
        assert Counter(CODE.findall(section)) == Counter(CODE.findall(source))
        assert Counter(QUOTED.findall(section)) == Counter(QUOTED.findall(source))
        assert Counter(LINK.findall(section)) == Counter(LINK.findall(source))
        assert not Counter(NUMBER.findall(source)) - Counter(NUMBER.findall(section))


@pytest.mark.parametrize("page", TRANSLATED, ids=name_of)
def test_a_translated_help_page_calls_node_and_inputs_as_the_screen_does(page):
    names = definitions(page.stem)[page.parent.name]
    text = page.read_text(encoding="utf-8")
    stop, comma = (". ", ", ") if page.stem == "ko" else ("。", "、")
    assert text.splitlines()[0] == f"# {names['display_name']}"
    place = next(i for i, source in enumerate(sections(english(page))) if source.startswith("Inputs\n"))
    for listed, said in re.findall(r"^- ((?:`\w+`(?:, )?)+): (.+)$", sections(text)[place], re.MULTILINE):
        shown = comma.join(names["inputs"][name]["name"] for name in re.findall(r"\w+", listed))
        assert said.startswith(shown + stop)


@pytest.mark.parametrize("page", TRANSLATED, ids=name_of)
def test_a_translated_help_page_is_in_its_language(page):
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    foreign = {"ko": "ja", "ja": "ko", "zh": "ja"}[page.stem]
    assert re.search(SCRIPTS[page.stem], text)
    assert not re.search(SCRIPTS[foreign], text)
    letters = SCRIPTS["ja"] + "|" + SCRIPTS["zh"] if page.stem == "ja" else SCRIPTS[page.stem]
    for line in text.splitlines():
        if line and not line.startswith("|"):
            assert re.search(letters, QUOTED.sub("", CODE.sub("", line))), line
    assert not set(text.splitlines()) & set(re.findall(r"^## .+$", english(page), re.MULTILINE))


@pytest.mark.parametrize("page", TRANSLATED, ids=name_of)
def test_emphasis_in_a_translated_help_page_ends_where_markdown_sees_it(page):
    text = QUOTED.sub('"q"', CODE.sub("c", BLOCK.sub("", page.read_text(encoding="utf-8")))).replace(" * ", " x ")
    for mark in EMPHASIS.finditer(text):
        before, after = text[mark.start() - 1], text[mark.end() : mark.end() + 1]
        assert mark[2] == mark[2].strip()
        assert mark[2][0].isalnum() or not before.isalnum(), mark[0]
        assert mark[2][-1].isalnum() or not after.isalnum(), mark[0]
    assert "*" not in EMPHASIS.sub("", text).replace("CFG-Zero*", "")


def test_the_list_of_nodes_has_a_line_for_each_that_leads_to_its_page():
    text = (ROOT / "docs" / "nodes.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| ([\w-]+) \| \[(.+?)\]\(\.\./web/docs/(\w+)\.md\) \| ", text, re.MULTILINE)
    sources = "".join(SOURCES.values())
    menu = dict(re.findall(r'node_id="(\w+)",\s+display_name="[^"]+",\s+category="reins/([\w-]+)"', sources))
    assert {(menu[node], NODES[node]["display_name"], node) for node in NODES} == set(lines)
    assert len(lines) == len(NODES)


def test_the_list_of_examples_has_a_line_for_each():
    text = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| \[(\w+)\]\(\.\./example_workflows/(\w+)\.json\) \| ", text, re.MULTILINE)
    assert sorted(lines) == sorted((path.stem, path.stem) for path in EXAMPLES.glob("*.json"))


def test_the_readme_is_short_and_names_every_guide():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= README_LINES
    assert {path.relative_to(ROOT).as_posix() for path in GUIDES} <= {link.split("#")[0] for link in LINK.findall(text)}
    assert len(re.findall(r"!\[", text)) == 1


def test_the_readme_says_at_its_top_how_to_try_and_how_to_test():
    top = README.read_text(encoding="utf-8").split("\n## ")[0]
    assert re.findall(r"^python3 dev\.py \w+", top, re.MULTILINE) == ["python3 dev.py demo", "python3 dev.py test"]


SWEEP = "[`dev.py sweep`](docs/sweep.md)"  # a wish that is no node's


def test_the_readme_leads_to_sweeps():
    table = README.read_text(encoding="utf-8").split("\n## What do you want?\n")[1].split("\n## ")[0]
    (row,) = (line for line in table.splitlines() if SWEEP in line)
    assert "more than one machine" in row


def wishes() -> list[list[str]]:
    """The rows of the README's table: what is wanted, the node, paper, cost, help page."""
    table = README.read_text(encoding="utf-8").split("\n## What do you want?\n")[1].split("\n## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return [row for row in rows if row[1] != SWEEP]


def test_the_readme_leads_to_the_chapter_and_the_help_page_of_each_method():
    assert {cell.rpartition("#")[2].rstrip(")") for _, cell, *_ in wishes()} == {
        anchor(chapter.splitlines()[0]) for chapter in chapters()
    }
    helped = [page for row in wishes() for page in re.findall(r"\(web/docs/(\w+)\.md\)", row[4])]
    assert sorted(helped) == sorted(METHODS)


def test_the_readme_gives_each_method_the_cost_of_its_chapter_and_a_paper_of_its_help_page():
    for _, node, paper, cost, helped in wishes():
        place = node.rpartition("#")[2].rstrip(")")
        (chapter,) = (text for text in chapters() if anchor(text.splitlines()[0]) == place)
        assert chapter.split("- **Cost:** ")[1].startswith(cost), node
        page = (ROOT / LINK.findall(helped)[0]).read_text(encoding="utf-8")
        assert LINK.findall(paper) == [] or f"({LINK.findall(paper)[0]})" in page, node


COUNTS = {  # what is counted, as texts call it, and how many there are
    r"nodes (?:of the pack|for ComfyUI)|nodes, with": len(NODES),
    r"example workflows|examples:": len(list(EXAMPLES.glob("*.json"))),
}


@pytest.mark.parametrize("counted", COUNTS)
def test_texts_count_nodes_and_examples_alike(counted):
    said = {
        name_of(path): [int(number) for number in re.findall(rf"\b(\d+) (?:{counted})", path.read_text("utf-8"))]
        for path in FRONT
    }
    assert sum(map(len, said.values())) >= 3
    assert {number for numbers in said.values() for number in numbers} == {COUNTS[counted]}, said


@pytest.mark.parametrize("acronym", ["PAG", "SEG", "TPG", "SAG"])
def test_the_note_of_an_example_counts_the_evaluations_of_its_chapter(acronym):
    (example,) = EXAMPLES.glob(f"{acronym.lower()}_*_sd15.json")
    nodes = json.loads(example.read_text(encoding="utf-8"))["nodes"]
    (note,) = (node["widgets_values"][0] for node in nodes if node["type"] == "MarkdownNote")
    (said,) = re.findall(r"(?:about )?([\d.]+|three) evaluations per step instead of two", note)
    (chapter,) = (text for text in chapters() if text.startswith(f"{acronym} – "))
    assert chapter.split("- **Cost:** ")[1].startswith(f"{said.replace('three', '3')} / ")


@pytest.mark.parametrize(
    ("field", "said"),
    [("requires-comfyui", r"ComfyUI (\d+\.\d+\.\d+) (?:and|or) newer"), ("requires-python", r"Python (\d+\.\d+)")],
)
def test_texts_name_the_oldest_versions_that_the_metadata_ask_for(field, said):
    (least,) = re.findall(rf'^{field} = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    found = [version for path in FRONT for version in re.findall(said, path.read_text("utf-8"))]
    assert found
    assert set(found) == {least}


def chapters() -> list[str]:
    """Those of the page that says which method is for what."""
    return WHICH_METHOD.read_text(encoding="utf-8").split("\n### ")[1:]


def names_in(title: str) -> list[str]:
    """The names of nodes in the heading of a chapter. A comma between brackets belongs to a name."""
    return re.split(r", (?![^(]*\))", title)


def anchor(title: str) -> str:
    """What a link to a heading is called."""
    return re.sub(r"[^\w -]", "", title).lower().replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {anchor(title) for title in re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)}


@pytest.mark.parametrize("node", METHODS)
def test_a_method_has_its_chapter_with_a_picture_and_a_workflow_among_the_others(node):
    (chapter,) = (text for text in chapters() if NODES[node]["display_name"] in names_in(text.splitlines()[0]))
    pictures = re.findall(r"^!\[[^\]]+\]\((images/\w+\.png)\)$", chapter, re.MULTILINE)
    assert pictures
    assert all((WHICH_METHOD.parent / picture).is_file() for picture in pictures)
    assert re.findall(r"^- \*\*(.+?):\*\* ", chapter, re.MULTILINE) == ["When", "Not when", "Cost", "Models", "More"]
    assert f"](../web/docs/{node}.md)" in chapter
    workflows = re.findall(r"\[(demo_\w+)\]\(\.\./example_workflows/(\w+)\.json\)", chapter)
    assert workflows
    assert all(name == linked for name, linked in workflows)


def test_the_guides_show_every_picture():
    shown = {name for page in GUIDES for name in re.findall(r"\(images/([\w.]+)\)", page.read_text(encoding="utf-8"))}
    assert shown == {path.name for path in (ROOT / "docs" / "images").iterdir()}


def ways() -> dict[str, list[str]]:
    """The steps of each method on its way through the code."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    ways = re.findall(r"^## The way of (.+)\n\n((?:.*\n)+?)(?=## )", page, re.MULTILINE)
    return {method: re.findall(r"^\d\. .+$", way, re.MULTILINE) for method, way in ways}


def test_the_page_of_the_code_shows_three_ways_and_the_picture_the_first():
    assert list(ways()) == ["PAG", "IP-Adapter", "ControlNeXt"]
    for steps in ways().values():
        assert [int(step.split(".")[0]) for step in steps] == list(range(1, len(steps) + 1))
        assert sum("enters here**" in step for step in steps) == 1
    picture = (ROOT / "docs" / "images" / "house.svg").read_text(encoding="utf-8")
    assert sorted(re.findall(r">(\d)<", picture)) == [step[0] for step in ways()["PAG"]]
    named = re.findall(r">(\w+)(?:: [^<]+)?<", picture.split('fill="#8a3309" font-size="13">')[1].split("</g>")[0])
    assert "add_to_result" in named
    assert not [name for name in named if not any(name in step for step in ways()["PAG"])]


@pytest.mark.parametrize(
    "step", [step for way in ways().values() for step in way], ids=lambda step: re.sub(r"\W+", "_", step[:24])
)
def test_a_step_of_a_way_names_what_the_code_has(step):
    files = [ROOT / "docs" / link for link in LINK.findall(step)]
    names = {name for said in re.findall(r"`([\w.]+)`", step) for name in said.split(".")} - {"py"}
    code = "".join(path.read_text(encoding="utf-8") for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))
    assert all(path.is_file() for path in files)
    assert not [name for name in names if not re.search(rf"\b{name}\b", code)]


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_to_files_and_headings_resolve(path):
    folder = DOCS if DOCS in path.parents else path.parent  # the frontend puts one base before all sources of pictures
    dead = []
    for link in LINK.findall(path.read_text(encoding="utf-8")):
        if "://" not in link:
            file, _, heading = link.partition("#")
            target = folder / file if file else path
            if not target.exists() or (heading and heading not in anchors(target)):
                dead.append(link)
    assert not dead


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_every_address_is_one_of_a_place_that_exists(path):
    made_up = [found for found in ADDRESS.findall(path.read_text(encoding="utf-8")) if not KNOWN.fullmatch(found)]
    assert not made_up


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_no_text_holds_a_trace_of_how_it_was_made(path):
    assert not TRACE.findall(path.read_text(encoding="utf-8"))


def test_examples_are_workflows_with_a_thumbnail_and_a_twin_and_nothing_else():
    names = {path.stem for path in EXAMPLES.glob("*.json")}
    assert names
    assert {path.name for path in EXAMPLES.iterdir()} == {
        f"{name}.{kind}" for name in names for kind in ("json", "jpg")
    }
    assert names <= {path.stem for path in (ROOT / "demo" / "api").glob("*.json")}


def is_for_the_demo_model(path: Path) -> bool:
    """Whether an example says by its name that it needs no file."""
    return path.stem == START or path.stem.startswith("demo_")


def note_of(path: Path) -> str:
    """The text of an example's note, which its file holds twice."""
    nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
    (note,) = (node for node in nodes if node["type"] == "MarkdownNote")
    (text,) = note["widgets_values"]
    assert note["widgets_values_named"] == {"text": text}
    return text


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.json")), ids=lambda path: path.stem)
def test_the_note_of_an_example_stays_when_its_graph_is_seen_from_afar(path):
    (mark,) = re.findall(r'MARK = "(\w+)"', (ROOT / "web" / "notes_from_afar.js").read_text("utf-8"))
    nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
    assert [node["properties"].get(mark) for node in nodes if node["type"] == "MarkdownNote"] == [True]


def test_the_example_to_start_with_is_the_first_by_name():
    names = [path.stem for path in EXAMPLES.glob("*.json")]
    assert min(names) == min(names, key=str.lower) == START


def test_the_note_to_start_with_names_five_next_steps_each_with_an_example_and_all_but_one_with_a_node():
    steps = re.findall(r"^(\d)\. \*\*(\w+)\*\*: (.+)$", note_of(EXAMPLES / f"{START}.json"), re.MULTILINE)
    assert [number for number, _, _ in steps] == list("12345")
    examples = {path.stem: path for path in EXAMPLES.glob("*.json")}
    assert len({name for _, name, _ in steps} & examples.keys() - {START}) == len(steps)
    for _, name, text in steps:
        named = [node for node, entry in NODES.items() if f"*{entry['display_name']}*" in text]
        used = {node["type"] for node in json.loads(examples[name].read_text(encoding="utf-8"))["nodes"]}
        assert named or name == "demo_everything"
        assert set(named) <= used
    assert sum(is_for_the_demo_model(examples[name]) for _, name, _ in steps) == len(steps) - 1


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.json")), ids=name_of)
def test_the_note_of_every_other_example_ends_with_the_one_to_start_with(path):
    lines = note_of(path).splitlines()
    assert lines.count(POINTER) == (path.stem != START)
    assert (lines[-1] == POINTER) == (path.stem != START)


def files_of(node: dict[str, Any]) -> list[str]:
    """The files that a loader names."""
    return [name for name in node["widgets_values"][: LOADERS[node["type"]]] if name != NO_FILE]


def said_in_a_note(name: str) -> tuple[str, ...]:
    """What a note says of a file: its name, where it goes, and what a person has to know before the download."""
    if name == OF_THE_HOST:
        return ()
    licence, *size, folder = FILES[name]
    if name not in (*ADDRESSES, *NO_ADDRESS):
        return name, folder
    return (name, *size, folder, *(("non-commercial",) if "Non-Commercial" in licence else ()))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.json")), ids=name_of)
def test_a_note_is_short_and_its_title_what_to_look_at_and_what_to_try_are_large(path):
    note = note_of(path)
    assert len(note) <= MOST.get(path.stem, SHORT if is_for_the_demo_model(path) else LONGER)
    assert "`" not in note  # Nodes 2.0 of ComfyUI 0.33.0 draw code in blue on brown: a contrast of 1.4
    large = [line for line in note.splitlines() if line.startswith(LARGE)]
    assert [len(line) <= 140 for line in large] == [True] * 3
    assert re.match(r"# (Look at|Count) ", large[1])
    assert large[2].startswith("# Try ")


def test_the_page_about_each_example_has_a_section_for_each():
    sections = (ROOT / "docs" / "example_notes.md").read_text(encoding="utf-8").split("\n## ")[1:]
    listed = re.findall(r"^\| \[(\w+)\]", (ROOT / "docs" / "examples.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert [section.split("\n", 1)[0] for section in sections] == listed
    assert [section.split("\n", 1)[0] for section in sections if "**Try:**" not in section] == []


@pytest.mark.parametrize("name", [name for name in FILES if (ROOT / "demo" / "photographs" / name).is_file()])
def test_the_credits_have_the_licence_of_each_photograph_that_an_example_names(name):
    (row,) = (
        line
        for line in (ROOT / "docs" / "credits.md").read_text("utf-8").splitlines()
        if re.match(rf"(\|[^:|]*|- [^:]*)`{re.escape(name)}`", line)
    )
    *licence, _, _ = FILES[name]
    assert all(said in row for said in licence)


@pytest.mark.parametrize("name", [*ADDRESSES, *NO_ADDRESS])
def test_the_list_of_files_has_licence_size_folder_and_source_of_each(name):
    page = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    (row,) = re.findall(rf"^\| `{re.escape(name)}` \|.+$", page, re.MULTILINE)
    licence, size, folder = FILES[name]
    assert licence in row
    assert f"| {size} |" in row
    assert f"`{folder}`" in row
    if name in ADDRESSES:
        assert "](https://huggingface.co/{}/resolve/main/{})".format(*ADDRESSES[name]) in row
    assert ("renamed" in row) == (name not in ADDRESSES or ADDRESSES[name][1].rsplit("/", 1)[-1] != name)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.json")), ids=name_of)
def test_nodes_that_show_pictures_are_saved_as_high_as_they_get(path):
    """Classic nodes grow to this height when their pictures come, and would cover what is below them."""
    nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
    heights = {node["id"]: node["size"][1] for node in nodes if node["type"] in ("SaveImage", "PreviewImage")}
    assert {node: height for node, height in heights.items() if height < 290} == {}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.json")), ids=name_of)
def test_an_example_says_which_file_it_needs_and_its_nodes_do_not_overlap(path):
    nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
    (note,) = (node for node in nodes if node["type"] == "MarkdownNote")
    loaders = {node["type"] for node in nodes if node["type"] in CHECKPOINT_LOADERS}
    assert loaders
    assert is_for_the_demo_model(path) == (loaders == {"Reins_DemoModel"})
    named = [name for node in nodes if node["type"] in LOADERS for name in files_of(node)]
    for name in named:
        for needed in ("ships with the pack",) if name in SHIPPED else said_in_a_note(name):
            assert needed in note["widgets_values"][0]
    title = 30  # drawn above a node's place
    boxes = [(x, y - title, x + w, y + h) for (x, y), (w, h) in ((node["pos"], node["size"]) for node in nodes)]
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            assert a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] or b[1] >= a[3]


def offers_of(node: dict[str, Any]) -> list[dict[str, str]]:
    """The downloads that the editor offers for a node's files."""
    return node["properties"].get("models", [])


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.json")), ids=name_of)
def test_an_example_offers_the_download_of_each_released_file_and_of_nothing_else(path):
    nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
    for node in nodes:
        wanted = files_of(node) if node["type"] in LOADERS and node["type"] != "LoadImage" else []
        wanted = [name for name in wanted if name not in (*SHIPPED, *NO_ADDRESS)]
        assert offers_of(node) == [
            {
                "name": name,
                "url": "https://huggingface.co/{}/resolve/main/{}".format(*ADDRESSES[name]),
                "directory": FILES[name][2].removeprefix("models/"),
            }
            for name in wanted
        ]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.json")), ids=name_of)
def test_a_note_names_the_place_of_each_file_and_says_which_one_is_renamed(path):
    nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
    note = note_of(path)
    for name in (name for node in nodes if node["type"] in LOADERS for name in files_of(node)):
        line = next((line for line in note.splitlines() if f"**{name}**" in line), "")
        if name in NO_ADDRESS:
            assert "on Hugging Face" in line or "of the same place" in line
        elif name in ADDRESSES and ADDRESSES[name][1].rsplit("/", 1)[-1] != name:
            assert any(word in line for word in RENAMED)
