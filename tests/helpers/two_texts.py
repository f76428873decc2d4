"""Guided predictions of a transformer, by two plain runs of the host's network that meet at each attention.

One run reads the positive and one the negative, each alone and at its own length. So nothing is padded or hidden. At
each attention over picture and text, both outputs are made with an explicit matrix. Then both runs go on with the
guided picture, and each with its own text.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sampler_helpers import convert_cond
from torch import Tensor

from . import tiny_transformers
from .references import nag_by_the_paper

CPU = torch.device("cpu")
SECONDS = 60  # until a run that waits for the other gives up
Settings = tuple[float, float, float]  # scale, tau and alpha
Picture = Callable[[int, int], slice | None]  # which tokens are beside the text, by the number of queries and keys
Logits = Callable[[int, Tensor, slice], Tensor]  # of (number of the joint attention, logits, picture)


class Start(NamedTuple):
    """What a step from pure noise begins with: x (b, c, ...), and sigma (b,)."""

    x: Tensor
    sigma: Tensor


def start(family: str, model: ModelPatcher, h: int = 8, w: int = 12, batch: int = 1) -> Start:
    """The inputs of the one step that `tiny_transformers.sample` makes with steps=1."""
    sampling = model.model.model_sampling
    sigma = comfy.samplers.calculate_sigmas(sampling, "normal", 1)[:1]
    empty = tiny_transformers.latent(family, h, w, batch)
    noise = tiny_transformers.noise_like(empty)
    return Start(sampling.noise_scaling(sigma[0], noise, empty, True), sigma.expand(batch))


def conds_of(model: ModelPatcher, text: list, x: Tensor) -> dict[str, Any]:
    """What the model's own code makes of one prompt."""
    conds = comfy.samplers.encode_model_conds(model.model.extra_conds, convert_cond(text), x, CPU, "positive")
    values = {name: cond.cond for name, cond in conds[0]["model_conds"].items()}
    return {
        name: value.expand(len(x), *value.shape[1:]) if isinstance(value, Tensor) else value
        for name, value in values.items()
    }


def by_heads(part: Tensor, heads: int, is_by_heads: bool) -> Tensor:
    """Queries, keys or values as (b, heads, tokens, d)."""
    if is_by_heads:
        return part
    return (part if part.ndim == 4 else part.unflatten(-1, (heads, -1))).transpose(1, 2)


def explicit_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, change: Callable[[Tensor], Tensor]
) -> Tensor:
    """Attention (b, tokens, heads * d) of parts by heads, by its matrix. `change` is applied to the logits."""
    logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if mask is not None:
        logits = logits + mask.reshape(len(mask), -1, *mask.shape[-2:]) if mask.ndim > 2 else logits + mask
    return (change(logits).softmax(-1) @ v).transpose(1, 2).flatten(2)


class Meeting:
    """Where the runs for several prompts, the first of them the positive, exchange what their attentions gave."""

    def __init__(
        self, pictures: Sequence[Callable[[int, int], slice | None]], settings: Settings, logits: Logits
    ) -> None:
        self.pictures, self.settings, self.logits = pictures, settings, logits
        self.outs: list[Tensor | None] = [None] * len(pictures)
        self.barrier = threading.Barrier(len(pictures))

    def override(self, run: int) -> Callable[..., Tensor]:
        """The function for the host's slot in one of the runs."""
        met = 0

        def attend(
            func: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any
        ) -> Tensor:
            nonlocal met
            parts = [by_heads(part, heads, kwargs.get("skip_reshape", False)) for part in (q, k, v)]
            picture = self.pictures[run](parts[0].shape[2], parts[1].shape[2])
            mask = args[0] if args else kwargs.get("mask")
            number = met
            change = (lambda s: s) if picture is None else (lambda s: self.logits(number, s, picture))
            out = explicit_attention(*parts, mask, change)
            if picture is not None:
                met += 1
                out = self._guided(run, out, picture)
            return out.unflatten(-1, (heads, -1)).transpose(1, 2) if kwargs.get("skip_output_reshape") else out

        return attend

    def _guided(self, run: int, out: Tensor, picture: slice) -> Tensor:
        self.outs[run] = out[:, picture]
        self.barrier.wait(SECONDS)
        positive, *negatives = self.outs
        guided = nag_by_the_paper(positive, sum(negatives) / len(negatives), *self.settings)
        self.barrier.wait(SECONDS)
        out = out.clone()
        out[:, picture] = guided
        return out


def guided_by_hand(
    model: ModelPatcher, begin: Start, prompts: Sequence[list], pictures: Sequence[Picture],
    settings: Settings = (2.0, 2.5, 0.5), logits: Logits = lambda number, logits, picture: logits,
) -> Tensor:  # fmt: skip
    """The prediction (b, c, ...) for the first of the prompts, guided away from the mean of the others.

    `pictures` says of each run which tokens of an attention are beside its text, by the number of queries and keys.
    None stands for attentions that are not guided.
    """
    meeting = Meeting(pictures, settings, logits)
    conds = [conds_of(model, prompt, begin.x) for prompt in prompts]
    of_text = (
        "c_crossattn", "attention_mask", "num_tokens", "encoder_hidden_states_llama3", "t5xxl_ids", "t5xxl_weights",
    )  # fmt: skip
    conds = [{**conds[0], **{name: own[name] for name in of_text if name in own}} for own in conds]
    results: dict[int, Tensor] = {}
    errors: list[Exception] = []
    is_inference = torch.is_inference_mode_enabled()

    def run(number: int, inputs: Mapping[str, Any]) -> None:
        threading.current_thread().name = f"run {number}"
        options = {"optimized_attention_override": meeting.override(number), "sigmas": begin.sigma}
        try:
            with torch.inference_mode(is_inference), torch.no_grad():
                results[number] = model.model.apply_model(
                    begin.x.clone(), begin.sigma, transformer_options=options, **inputs
                )
        except Exception as error:  # noqa: BLE001 (the other run must not wait for this one)
            errors.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(conds)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)] or errors
    if first:
        raise first[0]
    return model.model.process_latent_out(results[0])


def pictures_of(family: str, model: ModelPatcher, begin: Start, prompts: Sequence[list]) -> list[Picture]:
    """What `guided_by_hand` needs to know of each prompt's run, for a family and the size of the latent."""
    return [_picture_of(family, model, begin, prompt) for prompt in prompts]


def _picture_of(family: str, model: ModelPatcher, begin: Start, prompt: list) -> Picture:
    if family in ("wan", "ltxv", "predict2"):
        return lambda queries, keys: None if queries == keys else slice(0, queries)
    h, w = begin.x.shape[-2:]
    side = 1 if family == "flux2" else 2
    cells = -(-h // side) * -(-w // side) * (begin.x.shape[2] if begin.x.ndim == 5 else 1)
    tokens = prompt[0][0].shape[1]
    if family == "zimage":
        cells, tokens = cells + -cells % 32, tokens + -tokens % 32
    tokens = {"hidream": 3 * tokens, "aura": tokens + 8, "flux2": 512}.get(family, tokens)
    blocks = getattr(model.model.diffusion_model, "double_blocks", None)
    is_last = family == "hidream" or bool(blocks and getattr(blocks[0], "flipped_img_txt", False))
    picture = slice(0, cells) if is_last else slice(tokens, tokens + cells)
    return lambda queries, keys: picture if keys == tokens + cells else None
