"""Asyrp (2210.10960): finds where to stop the editing and to begin the boosting, by the paper's rule."""

from __future__ import annotations

import logging

from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from comfy_api.latest import io
from torch import Tensor

from ...engine.folders import files_in, path_of
from ...engine.unet import unet_of
from ...models.h_space.ranges import crossing
from ..inputs.schema import make_input, schema
from ..inputs.sockets import checked_image
from .direction import REASON
from .range_plot import Found, plot_curves, plot_words
from .ranges import Request, load_metric, measure

logger = logging.getLogger(__name__)
FOLDER, AUTO = "lpips", "auto"
EDIT_END, BOOST_START = 0.6, 0.8  # the defaults of Asyrp Sampler
NOISE = ("inverted", "drawn")
PAPERS = "AlexNet"  # the network with which the paper measures


class AsyrpRange(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_AsyrpRange",
            display_name="Asyrp Range",
            category="reins/h-space",
            description="Measures on your model and pictures where Asyrp Sampler should stop editing and start "
            "boosting, by the paper's rule: distances of LPIPS. Needs its file in models/lpips; without it the "
            "defaults come out.",
            search_aliases=["asyrp", "t_edit", "t_boost", "lpips", "editing interval", "perceptual distance"],
            inputs=[
                make_input(
                    io.Model, "model",
                    tooltip="The model that will be edited, with its LoRA. Best before guidance nodes.",
                ),
                io.Image.Input(
                    "image", tooltip="Pictures of the kind that will be edited, of a size that suits the model. More "
                    "make the result steadier; the paper takes 100.",
                ),
                io.Vae.Input("vae", tooltip="The VAE of the model."),
                io.Conditioning.Input(
                    "positive", optional=True,
                    tooltip="The prompt of the pictures, or an empty one. Without it: zeros in the place of a text.",
                ),
                *measurement_inputs(),
            ],
            outputs=[
                io.Float.Output(display_name="edit_end_percent", tooltip="For edit_end_percent of Asyrp Sampler."),
                io.Float.Output(
                    display_name="boost_start_percent", tooltip="For boost_start_percent of Asyrp Sampler."
                ),
                io.Image.Output(display_name="plot", tooltip="Both distances over the run, and what follows."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, lpips_name: str = AUTO, **others: object) -> str | None:
        """Returns what the host compares: a file that was put into the folder changes the result."""
        return chosen_file(lpips_name)

    @classmethod
    def execute(
        cls, model: ModelPatcher, image: Tensor, vae: VAE, steps: int = 50, edit_distance: float = 0.33,
        boost_distance: float = 1.2, positive: list | None = None, lpips_name: str = AUTO, noise: str = NOISE[0],
    ) -> io.NodeOutput:  # fmt: skip
        unet_of(model, REASON)
        image = checked_image(image, "image")
        name = chosen_file(lpips_name)
        if name is None:
            logger.warning(
                f"Asyrp Range measures with LPIPS, but models/{FOLDER} holds no file. It returns the defaults of Asyrp "
                f"Sampler, {EDIT_END} and {BOOST_START}; the help page says where the file is from."
            )
            return io.NodeOutput(EDIT_END, BOOST_START, plot_words(NO_FILE))
        metric = load_metric(path_of(FOLDER, name))
        if metric.backbone != PAPERS:
            logger.warning(
                f"Asyrp Range: {metric.name} holds {metric.backbone}, but the paper's distances are {PAPERS}'s. Choose "
                f"a file with {PAPERS}, or set your own distances."
            )
        curves = measure(model, vae, image, metric, Request(positive, steps, noise == NOISE[1]))
        edit = found("edit_end_percent", crossing(curves.percents, curves.predicted, edit_distance), edit_distance)
        boost = found("boost_start_percent", crossing(curves.percents, curves.noisy, boost_distance), boost_distance)
        return io.NodeOutput(edit.percent, boost.percent, plot_curves(curves, edit, boost))


DEFAULTS = {"edit_end_percent": EDIT_END, "boost_start_percent": BOOST_START}
NO_FILE = (
    "Asyrp Range found no file in models/lpips, and measured nothing.",
    f"edit_end_percent {EDIT_END} and boost_start_percent {BOOST_START} are the defaults of Asyrp Sampler.",
    "The help page of this node says where the file is from.",
)


def found(name: str, percent: float | None, distance: float) -> Found:
    """Returns the result, which is the default of Asyrp Sampler if no distance is as large. The log then says so."""
    if percent is not None:
        return Found(name, distance, percent, True)
    logger.warning(
        f"Asyrp Range: no noise level is as far from the pictures as {distance:g}, so {name} is the default, "
        f"{DEFAULTS[name]}. Look at the plot, and set a smaller distance."
    )
    return Found(name, distance, DEFAULTS[name], False)


def chosen_file(name: str) -> str | None:
    """Returns the name of the file to measure with. None if there is none to choose."""
    files = files_in(FOLDER)
    if name != AUTO:
        return name
    return files[0] if files else None


def measurement_inputs() -> list[io.Input]:
    return [
        make_input(
            io.Int, "steps", default=50, min=2, max=1000,
            tooltip="Noise levels to measure at. The model is called once for each.",
        ),
        make_input(
            io.Combo, "lpips_name", options=[AUTO, *files_in(FOLDER)], default=AUTO, optional=True,
            tooltip="A file in models/lpips with AlexNet and the five linear layers of LPIPS 0.1. auto: the "
            "first file there.",
        ),
        distance_input(
            "edit_distance", 0.33,
            "Editing stops where the prediction is as far from the picture as this. The paper: 0.33, times the "
            "cosine of the two texts.",
        ),
        distance_input(
            "boost_distance", 1.2,
            "Boosting begins where the noisy picture is as near to the picture as this. The paper: 1.2.",
        ),
        make_input(
            io.Combo, "noise", options=list(NOISE), default=NOISE[0], optional=True,
            tooltip="inverted: the picture is led up to the noise by the model itself (DDIM inversion), as in "
            "the paper. drawn: noise is added to the picture, for models that invert badly.",
        ),
    ]  # fmt: skip


def distance_input(name: str, default: float, tooltip: str) -> io.Input:
    return make_input(io.Float, name, default=default, min=0.0, max=10.0, step=0.001, tooltip=tooltip)
