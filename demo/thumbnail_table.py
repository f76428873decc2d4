"""What the thumbnail of each example shows. `thumbnails.py` draws it."""

from __future__ import annotations

from typing import NamedTuple

from .pictures import CELL

CENTRE = (0.5, 0.5)


class Part(NamedTuple):
    """One picture of a thumbnail: its label, the name under which a demo saves it, and its number in the batch.

    `place` is its place in a row of pictures side by side, each `side` pixels wide and high. `at` is the centre of what
    is shown, and `rows` its height, both as shares of the picture. A `whole` picture is not cut.
    """

    label: str
    saved: str
    number: int = 1
    place: int | None = None
    at: tuple[float, float] = CENTRE
    rows: float = 1.0
    whole: bool = False
    side: int = CELL


class Thumbnail(NamedTuple):
    """Large pictures from left to right, what is said of them, and small ones at the top that the workflow is given.

    `tallest` is the largest height of a large picture, as a multiple of its width. `letters` is the size of what is
    said, in pixels.
    """

    parts: tuple[Part, ...]
    said: str
    given: tuple[Part, ...] = ()
    tallest: float = 2.0
    letters: int = 27


def beside(
    workflow: str,
    number: int,
    labels: dict[str, str],
    said: str,
    at: tuple[float, float] = CENTRE,
    rows: float = 1.0,
) -> Thumbnail:
    """Pictures with the same number in their batches that a workflow saves one by one, by their names."""
    parts = [Part(label, f"{workflow}-{name}", number, None, at, rows) for name, label in labels.items()]
    return Thumbnail(tuple(parts), said)


def in_row(
    workflow: str,
    number: int,
    labels: dict[int, str],
    said: str,
    at: tuple[float, float] = CENTRE,
    rows: float = 1.0,
) -> Thumbnail:
    """Pictures of one row that a workflow puts side by side, by their places."""
    parts = [Part(label, f"{workflow}-{workflow}", number, place, at, rows) for place, label in labels.items()]
    return Thumbnail(tuple(parts), said)


def given_by_name(thumbnail: Thumbnail, *names: tuple[str, int]) -> Thumbnail:
    """The thumbnail with small pictures of the same workflow at its top, by (name, number), and square large ones."""
    workflow = thumbnail.parts[0].saved.split("-")[0]
    given = tuple(Part("", f"{workflow}-{name}", number) for name, number in names)
    return thumbnail._replace(given=given, tallest=1.0)


def given_by_place(thumbnail: Thumbnail, *places: int) -> Thumbnail:
    """The thumbnail with small pictures of the same row at its top, and square large ones."""
    saved, number = thumbnail.parts[0].saved, thumbnail.parts[0].number
    return thumbnail._replace(given=tuple(Part("", saved, number, place) for place in places), tallest=1.0)


def controlnext(number: int) -> Thumbnail:
    """A mask, a depth map or edges as the hint of a ControlNeXt, by the number."""
    return given_by_place(in_row("demo_controlnext", number, {1: "without", 2: "ControlNeXt"}, "the hint"), 0)


def unicon(number: int) -> Thumbnail:
    """An image from the depth map with this number."""
    return given_by_place(in_row("demo_unicon_depth_to_image", number, {1: "without", 2: "UniCon"}, "the depth map"), 0)


def adapted(workflow: str, number: int) -> Thumbnail:
    """A picture of an example of an IP-Adapter, without and with its reference."""
    labels = {f"{workflow}_plain": "without", workflow: "IP-Adapter"}
    return given_by_name(beside(workflow, number, labels, "the reference"), (f"{workflow}_reference", 1))


SHOWN = {
    "_start_here": Thumbnail(
        (Part("the words alone", "_start_here-start_here", place=1, side=384),
         Part("with the hint", "_start_here-start_here", place=2, side=384)),
        "Start here", (Part("", "_start_here-start_here", place=0, side=384),), tallest=1.0, letters=48,
    ),
    "demo_apg_fdg_cfg_zero_corrections": beside(
        "demo_apg_fdg_cfg_zero_corrections", 1, {"demo_plain": "CFG 12", "demo_apg": "APG"},
        "strong guidance,\nnot burnt",
    ),
    "demo_asyrp_h_space": in_row(
        "demo_asyrp_h_space", 4, {0: "strength -4", 2: "strength 4"}, "one property,\nless and more", rows=0.8
    ),
    "demo_asyrp_range": beside(
        "demo_asyrp_range", 3, {"demo_asyrp_range_plain": "as it is", "demo_asyrp_range": "edited"},
        "how far into a run\nto edit", rows=0.9,
    ),
    "demo_asyrp_sampler": beside(
        "demo_asyrp_sampler", 1,
        {"demo_asyrp_smaller": "strength -4", "demo_asyrp_plain": "0", "demo_asyrp_larger": "4"},
        "the paper's\nown sampler", rows=0.9,
    ),
    "demo_autoguidance_weak_model": beside(
        "demo_autoguidance_weak_model", 1,
        {"demo_lora": "LoRA at 0.8", "demo_autoguidance_weak_model": "Weak Model"}, "more of what a\nLoRA has learnt",
        at=(0.35, 0.5),
    ),
    "demo_control_net": given_by_place(
        in_row("demo_control_net", 1, {1: "ControlNet", 2: "ControlNeXt"}, "one depth map,\ntwo networks"), 0
    ),
    "demo_controlnext": controlnext(2),
    "demo_everything": given_by_place(
        in_row("demo_everything", 1, {2: "the words alone", 5: "everything"}, "a hint and\na reference"), 0, 1
    ),
    "demo_guidance_everything": beside(
        "demo_guidance_everything", 2, {"demo_plain_cfg": "CFG 3", "demo_everything": "five nodes"},
        "PAG, SEG, SAG,\nInterval, Rescale",
    ),
    "demo_guidance_plot": Thumbnail(
        (Part("what each node changes", "demo_guidance_plot-demo_guidance_plot", whole=True),), "without,\nand guided",
        (Part("", "demo_guidance_plot-demo_plain", 4), Part("", "demo_guidance_plot-demo_guided", 4)),
    ),
    "demo_image_guidance": given_by_name(
        beside(
            "demo_image_guidance", 2, {"demo_plain": "without", "demo_colours": "its colours"}, "a picture\nto be like"
        ),
        ("demo_given", 2),
    ),
    "demo_interval_and_rescale": beside(
        "demo_interval_and_rescale", 4, {"demo_cfg_high": "CFG 12", "demo_interval_rescale": "Interval, Rescale"},
        "strong guidance,\nnot burnt", at=(0.35, 0.5),
    ),
    "demo_ip_adapter": adapted("demo_ip_adapter", 1),
    "demo_ip_adapter_frames": Thumbnail(
        (Part("frame 1", "demo_ip_adapter_frames-demo_ip_adapter_frames"),
         Part("frame 3", "demo_ip_adapter_frames-demo_ip_adapter_frames", 3)),
        "a reference\nfor each frame",
        (Part("", "demo_ip_adapter_frames-demo_ip_adapter_four_references"),
         Part("", "demo_ip_adapter_frames-demo_ip_adapter_four_references", 3)), tallest=1.0,
    ),
    "demo_ip_adapter_regions": beside(
        "demo_ip_adapter_regions", 2,
        {"demo_ip_adapter_everywhere": "everywhere", "demo_ip_adapter_regions": "left and right"}, "two references",
        rows=0.75,
    )._replace(
        given=tuple(
            Part("", "demo_ip_adapter_regions-demo_ip_adapter_two_references", place=place) for place in (0, 1)
        ),
        tallest=1.0,
    ),
    "demo_ip_adapter_transformer": adapted("demo_ip_adapter_transformer", 2),
    "demo_lora_style": beside(
        "demo_lora_style", 1, {"demo_plain_lora": "without", "demo_checked_lora": "LoRA"}, "a LoRA teaches\na texture",
        at=(0.35, 0.5),
    ),
    "demo_nag_negative_without_cfg": beside(
        "demo_nag_negative_without_cfg", 2, {"demo_cfg_1": "without", "demo_nag": "NAG"}, "negative prompt:\nred",
        at=(0.68, 0.5),
    ),
    "demo_nag_transformer": beside(
        "demo_nag_transformer", 4, {"demo_dit_cfg_1": "without", "demo_dit_nag": "NAG"}, "negative prompt:\nred"
    ),
    "demo_pag_perturbed_attention": beside(
        "demo_pag_perturbed_attention", 4, {"demo_plain": "without", "demo_pag": "PAG"}, "repairs a shape",
        at=(0.65, 0.5), rows=0.85,
    ),
    "demo_pag_transformer": beside(
        "demo_pag_transformer", 1, {"demo_dit_plain": "without", "demo_dit_pag": "PAG"}, "smooths\nan outline",
        at=(0.62, 0.3), rows=0.8,
    ),
    "demo_pladis_sparse_attention": given_by_name(
        beside(
            "demo_pladis_sparse_attention", 3, {"demo_plain": "without", "demo_pladis": "PLADIS"}, "paint it red",
            rows=0.7,
        ),
        ("demo_drawn", 3),
    )._replace(tallest=2.0),
    "demo_prompt": Thumbnail(
        (Part("red circle", "demo_prompt-demo_red_circle_top_left", at=(0.33, 0.5)),
         Part("blue triangle", "demo_prompt-demo_blue_triangle_striped")),
        "as the\nprompt says",
    ),
    "demo_prompt_diffusion": given_by_place(
        in_row("demo_prompt_diffusion", 3, {2: "question", 3: "answer"}, "as in this\nexample"), 0, 1
    ),
    "demo_sag_self_attention": beside(
        "demo_sag_self_attention", 1, {"demo_plain": "without", "demo_sag": "SAG"}, "smooths edges\nand grounds",
        at=(0.36, 0.5), rows=0.6,
    ),
    "demo_scene": Thumbnail(
        (Part("drawn", "demo_scene-demo_scene_picture"), Part("repainted", "demo_scene-demo_scene_repainted")),
        "its depth\nand edges", (Part("", "demo_scene-demo_scene_depth"), Part("", "demo_scene-demo_scene_edge")),
        tallest=1.0,
    ),
    "demo_seg_smoothed_energy": beside(
        "demo_seg_smoothed_energy", 3, {"demo_seg_plain": "without", "demo_seg": "SEG"}, "a blot becomes\na triangle",
        at=(0.33, 0.3), rows=0.6,
    ),
    "demo_slg_transformer": beside(
        "demo_slg_transformer", 2, {"demo_dit_plain": "without", "demo_dit_slg": "SLG"}, "straighter arms",
        at=(0.47, 0.35), rows=0.95,
    ),
    "demo_swg_sliding_window": beside(
        "demo_swg_sliding_window", 1, {"demo_plain": "without", "demo_swg": "SWG"}, "one large picture,\nnot two"
    )._replace(tallest=1.0),
    "demo_tpg_token_perturbation": beside(
        "demo_tpg_token_perturbation", 2, {"demo_plain": "without", "demo_tpg": "TPG"}, "repairs a shape",
        at=(0.7, 0.3), rows=0.8,
    ),
    "demo_unclip_clip_vision": Thumbnail(
        tuple(
            Part(label, "demo_unclip_clip_vision-demo_unclip_clip_vision", number, 1, at=(0.35, 0.5))
            for label, number in (("frame 1", 1), ("3", 3), ("5", 5))
        ),
        "from one look\nto another",
        tuple(Part("", "demo_unclip_clip_vision-demo_unclip_clip_vision", place=place) for place in (0, 2)),
    ),
    "demo_unclip_clip_vision_mean": beside(
        "demo_unclip_clip_vision_mean", 1,
        {"demo_mean_first": "one look", "demo_mean": "the mean", "demo_mean_second": "another"}, "between\ntwo looks",
    ),
    "demo_unicon_coarse": given_by_place(
        in_row("demo_unicon_coarse", 3, {1: "image", 2: "its depth"}, "a circle, roughly\nwhere this is"), 0
    ),
    "demo_unicon_depth_to_image": unicon(1),
    "demo_unicon_image_to_depth": in_row(
        "demo_unicon_image_to_depth", 3, {0: "image", 1: "UniCon"}, "finds the depth\nof an image",
        at=(0.5, 0.6), rows=0.9,
    ),
    "demo_unicon_joint": in_row(
        "demo_unicon_joint", 2, {0: "image", 1: "its depth"}, "image and depth\nat once", at=(0.7, 0.4), rows=0.9
    ),
    "demo_unicon_two_clocks": given_by_place(
        in_row("demo_unicon_two_clocks", 1, {2: "image", 3: "its depth"}, "a circle there,\nby two clocks"), 0
    ),
}  # fmt: skip

NEEDED = {  # what the name of an example says, and what its thumbnail says
    "sd15": "SD1.5", "sd21": "SD2.1 unCLIP", "sd35": "SD3.5", "sdxl_turbo": "SDXL Turbo", "sdxl": "SDXL", "svd": "SVD",
    "flux": "Flux", "wan21": "Wan 2.1", "z_image": "Z-Image",
}  # fmt: skip
BORROWED = {  # of examples for released files
    "apg_fdg_cfg_corrections_sd15": SHOWN["demo_apg_fdg_cfg_zero_corrections"],
    "asyrp_h_space_sd15": SHOWN["demo_asyrp_h_space"],
    "autoguidance_weak_model_sd15": SHOWN["demo_autoguidance_weak_model"],
    "cfg_zero_star_sd35": beside(
        "demo_apg_fdg_cfg_zero_corrections",
        2,
        {"demo_plain": "CFG 12", "demo_cfg_zero": "CFG-Zero*"},
        "little to be seen\nat so high a CFG",
    ),
    "controlnext_sd15": controlnext(1),
    "controlnext_sdxl": controlnext(3),
    "controlnext_svd": controlnext(2),
    "everything_sd15": SHOWN["demo_everything"],
    "guidance_everything_sd15": SHOWN["demo_guidance_everything"],
    "guidance_interval_and_rescale_sd15": SHOWN["demo_interval_and_rescale"],
    "image_guidance_sd15": SHOWN["demo_image_guidance"],
    "ip_adapter_flux_instantx": adapted("demo_ip_adapter_transformer", 3),
    "ip_adapter_flux_xlabs": adapted("demo_ip_adapter_transformer", 1),
    "ip_adapter_sd15": SHOWN["demo_ip_adapter"],
    "ip_adapter_sd35": SHOWN["demo_ip_adapter_transformer"],
    "ip_adapter_sdxl": adapted("demo_ip_adapter", 4),
    "nag_negative_without_cfg_flux": SHOWN["demo_nag_transformer"],
    "nag_negative_without_cfg_sdxl_turbo": SHOWN["demo_nag_negative_without_cfg"],
    "pag_perturbed_attention_sd15": SHOWN["demo_pag_perturbed_attention"],
    "pag_perturbed_attention_z_image": SHOWN["demo_pag_transformer"],
    "pladis_sparse_attention_sdxl_turbo": SHOWN["demo_pladis_sparse_attention"],
    "prompt_diffusion_sd15": SHOWN["demo_prompt_diffusion"],
    "sag_self_attention_sd15": SHOWN["demo_sag_self_attention"],
    "seg_smoothed_energy_sd15": SHOWN["demo_seg_smoothed_energy"],
    "slg_skip_layers_sd35": SHOWN["demo_slg_transformer"],
    "slg_stg_skip_layers_wan21": SHOWN["demo_slg_transformer"],
    "swg_sliding_window_sd15": SHOWN["demo_swg_sliding_window"],
    "tpg_token_perturbation_sd15": SHOWN["demo_tpg_token_perturbation"],
    "unclip_sd21": SHOWN["demo_unclip_clip_vision"],
    "unicon_sd15_coarse": SHOWN["demo_unicon_coarse"],
    "unicon_sd15_depth_and_pose": unicon(3),
    "unicon_sd15_depth_to_image": unicon(1),
    "unicon_sd15_image_to_depth": SHOWN["demo_unicon_image_to_depth"],
    "unicon_sd15_joint": SHOWN["demo_unicon_joint"],
}
