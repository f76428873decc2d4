"""Asyrp (2210.10960): edits of the bottleneck h of a UNet while it samples.

The edit is asymmetric if the sampler takes plain steps: the predicted picture is edited, the direction back to the
noise is not. For this the model predicts both at each step, and the change is multiplied so that the sampler's own step
becomes the paper's (models/h_space/steps.py). Samplers that combine several predictions would mix edited and plain
ones, so with these h is edited in every prediction.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.model_sampling import CONST
from comfy.samplers import KSAMPLER
from einops import rearrange
from torch import Tensor

from ...engine.effects import watch
from ...engine.entries import append, entries, next_order
from ...engine.guidance import ExtraPrediction, install_guidance, predictions
from ...engine.layers.features import FeatureCall, FeatureLayer
from ...engine.loading import load_with
from ...engine.network import install_layers
from ...engine.rows.chunk import Chunk
from ...engine.rows.masks import mask_on_grid, shown_by
from ...engine.run import Run, Step, run_of
from ...engine.scope import Args, add_post_cfg
from ...engine.sites import Depth
from ...engine.span import Span
from ...engine.step import current_step, in_span, plain_predictions
from ...models.h_space.steps import effective_factor, following_level, levels_of_step, scaled_to
from .direction import SITE, BlockDirection, EditedRows, HDirection, PromptDirection, note_h

logger = logging.getLogger(__name__)
ETAS = {"sample_euler": 0.0, "sample_euler_ancestral": 1.0}  # samplers of plain steps, and the noise that they renew
TEXT = ("c_crossattn", "y")  # the host's names of a prompt's text, and of the numbers that go with it
PARTIAL = ("area", "mask", "strength", "timestep_start", "timestep_end")  # these keep a prompt to a part
UNFINISHED = "h_space_unfinished"


@dataclass(frozen=True, eq=False, kw_only=True)
class Edit:
    """Settings of one edit, and the term that it adds to h."""

    direction: HDirection
    strength: float
    span: Span
    asymmetric: bool = True
    both: bool = True  # the positive and the negative
    relative: bool = True  # whether strength counts in lengths of h
    mask: Tensor | None = None  # (m, height, width)

    def __call__(self, call: FeatureCall) -> Tensor | None:
        """Returns the change of h (chunks * b, c, h, w), or None if there is none. Notes h of a direction's prompts."""
        features = call.split(call.feature)
        if isinstance(self.direction, PromptDirection):
            for chunk, h in zip(call.chunks, features, strict=True):
                if chunk.mark in (self.direction.source_id, self.direction.target_id):
                    note_h(call.step, chunk.mark, call.images_in_window, h)
        edited = self._edited(call)
        terms = [self._term(call, chunk) if chunk in edited else None for chunk in call.chunks]
        if all(term is None for term in terms):
            return None
        return torch.cat(
            [torch.zeros_like(h) if term is None else term for h, term in zip(features, terms, strict=True)]
        )

    def _edited(self, call: FeatureCall) -> list[Chunk]:
        if self.is_asymmetric(call.run):
            mine = {POSITIVE.id, NEGATIVE.id} if self.both else {POSITIVE.id}
            return [chunk for chunk in call.chunks if chunk.mark in mine]
        if self.asymmetric:
            call.run.once(_warn_of_symmetry, lambda: _warn_of_symmetry(call.run))
        prompts = {rows.id for rows in entries(call.options, PromptRows)}
        return [
            chunk for chunk in call.chunks if chunk.mark not in prompts and (self.both or not chunk.is_negative)
        ]  # fmt: skip

    def _term(self, call: FeatureCall, chunk: Chunk) -> Tensor | None:
        h = call.split(call.feature)[chunk.index]
        embedding = None if call.embedding is None else call.split(call.embedding)[chunk.index]
        change = self.direction.at(
            EditedRows(h, embedding, chunk, call.images_in_window, call.sigma, call.run, call.step)
        )
        if change is None:
            if call.step is None or not self.is_asymmetric(call.run):
                raise RuntimeError(
                    "An h-space direction from prompts has to be found before the step, but this guider or another "
                    "node calls the model by itself. Set mode to asymmetric with Euler, or capture the direction."
                )
            call.step.notes[UNFINISHED] = True  # the prompts come in a later part of a split batch
            return None
        if self.relative:
            change = scaled_to(change, h)
        change = (change * self.strength).expand(h.shape)
        return change if self.mask is None else change * self._mask_rows(call, chunk, h)

    def _mask_rows(self, call: FeatureCall, chunk: Chunk, h: Tensor) -> Tensor:
        """Returns the mask (1 or b, 1, h, w) on the grid of h."""
        call.check_whole([chunk], "mask", "an H-Space Edit")
        grid = tuple(h.shape[-2:])

        def make() -> Tensor:
            (rows,) = mask_on_grid(self.mask, grid, [chunk])
            return rearrange(rows, "b (h w) one -> b one h w", h=grid[0]).to(h)

        return call.run.once((self, grid, shown_by([chunk]), h.dtype, h.device), make)

    def is_asymmetric(self, run: Run) -> bool:
        """Returns whether the edit is asymmetric in this run, which depends on the sampler."""
        return self.asymmetric and run.once((self, "asymmetric"), lambda: eta_of(run) is not None)


@dataclass(frozen=True, eq=False, kw_only=True)
class HEdit(FeatureLayer):
    """An edit as an entry of a model."""

    apply: Edit


@dataclass(frozen=True, eq=False, kw_only=True)
class EditedPrediction(ExtraPrediction):
    """The positive or the negative with all asymmetric edits of the model."""

    @property
    def first_change(self) -> Depth:
        return SITE.depth

    def conds(self, args: Args, positive: list | None, negative: list | None) -> list | None:
        edits = active_edits(args)
        if self.is_negative:
            return negative if any(edit.both for edit in edits) else None
        return positive if edits else None


@dataclass(frozen=True, eq=False, kw_only=True)
class PromptRows(ExtraPrediction):
    """A prediction for one of the two prompts of a direction, in which h is noted."""

    text: list
    direction: PromptDirection

    def comes_first(self, args: Args) -> bool:
        run = run_of(args["model_options"])
        return not all(edit.is_asymmetric(run) for edit in self._acting(args))

    def conds(self, args: Args, positive: list | None, negative: list | None) -> list | None:
        if not positive or not self._acting(args):
            return None
        encoded = run_of(args["model_options"]).once((self, "text"), lambda: self._encoded(args))
        whole = next((cond for cond in positive if cond.get("area") is None), positive[0])
        kept = {key: value for key, value in whole.items() if key not in PARTIAL}
        return [{**kept, "model_conds": {**whole["model_conds"], **encoded}, "uuid": self.id}]

    def _acting(self, args: Args) -> list[Edit]:
        """Returns the edits along this direction at this step. Several nodes may share one direction."""
        terms = [entry.apply for entry in entries(args["model_options"]["transformer_options"], FeatureLayer)]
        edits = [term for term in terms if isinstance(term, Edit) and term.direction is self.direction]
        return [edit for edit in edits if in_span(edit.span, args)]

    def _encoded(self, args: Args) -> dict[str, Any]:
        """Returns the text as the model takes it, with what else the positive holds."""
        text, own = self.text[0]
        prompt = comfy.sampler_helpers.convert_cond([[text, {**self.direction.positive[0][1], **own}]])
        x = args["input"]
        (encoded,) = comfy.samplers.encode_model_conds(args["model"].extra_conds, prompt, x, x.device, "positive")
        return {name: cond for name, cond in encoded["model_conds"].items() if name in TEXT}


def _fixed(name: str, **settings: Any) -> EditedPrediction:
    """Returns the same entry for all models, so that several edits share one prediction."""
    return EditedPrediction(id=uuid5(NAMESPACE_URL, f"reins/h-space/{name}"), **settings)


POSITIVE, NEGATIVE = _fixed("positive"), _fixed("negative", is_negative=True)


def add_edit(model: ModelPatcher, edit: Edit) -> ModelPatcher:
    """Returns a clone of `model` whose h is edited while it samples."""
    model = load_with(model, edit.direction.network) if isinstance(edit.direction, BlockDirection) else model.clone()
    order = next_order(model)
    layer, *prompts = entries_of(edit)
    for entry in [layer, *prompts, POSITIVE, NEGATIVE]:
        append(model, replace(entry, order=order))

    def add_to_result(args: Args) -> Tensor:
        acting = active_edits(args)
        # Edits share a prediction, and the last edit adds it.
        if not acting or acting[-1] is not edit or args["cond"] is None:
            return args["denoised"]
        return args["denoised"] + _step_factor(args) * _change(args, acting)

    add_post_cfg(model, "H-Space Edit", add_to_result)
    watch(model, "H-Space Edit", edit.span, layer.signs)
    install_layers(model)
    install_guidance(model)
    return model


def entries_of(edit: Edit) -> list[HEdit | PromptRows]:
    """Returns the entries of an edit on a model: itself, and the two prompts that it may need."""
    direction = edit.direction
    layer = HEdit(site=SITE, apply=edit, span=edit.span, reads_embedding=isinstance(direction, BlockDirection))
    if not isinstance(direction, PromptDirection):
        return [layer]
    sides = {direction.source_id: direction.source, direction.target_id: direction.target}
    return [
        layer,
        *(PromptRows(id=side, text=text, direction=direction) for side, text in sides.items()),
    ]


def active_edits(args: Args) -> list[Edit]:
    """Returns the asymmetric edits of a model that act at this step."""
    run = run_of(args["model_options"])
    edits = [entry.apply for entry in entries(args["model_options"]["transformer_options"], HEdit)]
    return [edit for edit in edits if edit.is_asymmetric(run) and in_span(edit.span, args)]


def _change(args: Args, edits: Sequence[Edit]) -> Tensor:
    """Returns the change of the guided prediction by edits, without what the host calls after its guidance."""
    step = current_step(args)
    predict_prompts(args, step, edits)
    guided = step.guided and args["uncond"] is not None
    edited_predictions = [POSITIVE, *([NEGATIVE] if guided and any(edit.both for edit in edits) else [])]
    if step.notes.pop(UNFINISHED, False):
        for prediction in edited_predictions:
            step.predictions.pop(prediction.id, None)
    edited, *edited_negative = predictions(args, edited_predictions)
    plain = plain_predictions(args)
    if not guided:
        return edited - plain.positive
    # Pre-CFG functions of other packs may have a memory, so they are not called again. What they return is moved by
    # the change of what they were given.
    positive, negative = args["cond_denoised"], args["uncond_denoised"]
    moved = positive + (edited - plain.positive)
    moved_negative = negative + (edited_negative[0] - plain.negative) if edited_negative else negative
    return _guided(args, moved, moved_negative) - _guided(args, positive, negative)


def predict_prompts(args: Args, step: Step, edits: Sequence[Edit]) -> None:
    """Predicts the prompts of directions if the host's slot did not."""
    noted = {key[0] for key in step.notes if isinstance(key, tuple)}
    rows = entries(args["model_options"]["transformer_options"], PromptRows)
    used = [edit.direction for edit in edits]
    missing = [prompt for prompt in rows if prompt.direction in used and prompt.id not in noted]
    if missing:
        predictions(args, missing)


def _guided(args: Args, positive: Tensor, negative: Tensor) -> Tensor:
    options = {key: value for key, value in args["model_options"].items() if key != "sampler_post_cfg_function"}
    return comfy.samplers.cfg_function(
        args["model"], positive, negative, args["cond_scale"], args["input"], args["sigma"], options, args["cond"],
        args["uncond"],
    )  # fmt: skip


def _step_factor(args: Args) -> float:
    """Returns the factor on the change for the step that the sampler takes next."""
    run, sigma = run_of(args["model_options"]), current_step(args).sigma
    run.once(_step_factor, lambda: logger.info("H-Space Edit is asymmetric, as in the paper (%s).", _sampler_of(run)))
    following = following_level(sigma, run.sigmas)
    if not following:
        return 1.0
    is_flow = isinstance(args["model"].model_sampling, CONST)
    return effective_factor(sigma, levels_of_step(sigma, following, eta_of(run), is_flow).down, is_flow)


def _warn_of_symmetry(run: Run) -> None:
    if run.sampler is not None:
        logger.warning(
            "H-Space Edit is symmetric here and much weaker: the steps of the sampler %s are not Euler's. For the "
            "asymmetric edit use euler, ddim or euler_ancestral, or Asyrp Sampler instead of this node.",
            _sampler_of(run),
        )


def eta_of(run: Run) -> float | None:
    """Returns the share of noise that the sampler renews, or None if it is not Euler's (the host's DDIM is Euler)."""
    options = run.sampler.extra_options if isinstance(run.sampler, KSAMPLER) else {}
    name = _sampler_of(run)
    return None if name not in ETAS or options.get("s_churn") else options.get("eta", ETAS[name])


def _sampler_of(run: Run) -> str:
    sampler = run.sampler
    return getattr(getattr(sampler, "sampler_function", None), "__name__", type(sampler).__name__)
