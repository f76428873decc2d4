"""Guidance on transformers written by hand, through the host alone, as references for PAG, SEG, SLG and TPG.

One step of euler gives the denoised picture. So the guided one is a sum of three runs without the pack.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from comfy.model_patcher import ModelPatcher
from reins.tests.helpers.attention_by_hand import Seen, overridden
from reins.tests.helpers.references import blur_by_the_sum
from reins.tests.helpers.tiny_transformers import sample, text
from torch import Tensor

# Layers in the notation of the nodes, and the blocks that they name in the host's network.
LAYERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "sd3": ("b1", ("joint_blocks.1",)),
    "sd35m": ("b1", ("joint_blocks.1",)),
    "flux": ("d1,s0", ("double_blocks.1", "single_blocks.0")),
    "flux2": ("d1,s0", ("double_blocks.1", "single_blocks.0")),
    "chroma": ("d1,s0", ("double_blocks.1", "single_blocks.0")),
    "lumina": ("n0,b1", ("noise_refiner.0", "layers.1")),
    "zimage": ("n0,b1", ("noise_refiner.0", "layers.1")),
    "hidream": ("d0,s1", ("double_stream_blocks.0", "single_stream_blocks.1")),
    "aura": ("d0,s1", ("double_layers.0", "single_layers.1")),
    "qwen": ("b1", ("transformer_blocks.1",)),
    "wan": ("b1-2", ("blocks.1", "blocks.2")),
    "hunyuan_video": ("d0,s1", ("double_blocks.0", "single_blocks.1")),
    "predict2": ("b1", ("blocks.1",)),
    "ltxv": ("b1", ("transformer_blocks.1",)),
}
CROSS = ("wan", "predict2", "ltxv")  # families whose text is in another attention
REGISTERS = {"aura": 8}  # tokens in front of the text
PADDED = {"zimage": 32, "flux2": 512}
IMAGE = {
    "hidream": "image_tokens", "qwen": "hidden_states",
    **dict.fromkeys(("flux", "flux2", "chroma", "hunyuan_video"), "img"),
}  # fmt: skip
TEXT = {
    "hidream": "text_tokens", "qwen": "encoder_hidden_states",
    **dict.fromkeys(("flux", "flux2", "chroma", "hunyuan_video"), "txt"),
}  # fmt: skip
TEXT_FIRST = ("sd3", "sd35m", "aura", "qwen")  # double blocks that take and return the text before the picture


class Where(NamedTuple):
    """Where the picture is in the attention of a block: its first token, and frames, height and width."""

    start: int
    grid: tuple[int, int, int]

    @property
    def picture(self) -> slice:
        return slice(self.start, self.start + math.prod(self.grid))


def where_of(family: str, model: ModelPatcher, x: Tensor, tokens: int, block: str, in_front: int = 0) -> Where:
    """Where the picture is in the first attention of a block, if the text has so many tokens."""
    p = 1 if family in ("ltxv", "flux2") else 2
    grid = (x.shape[2] if x.ndim == 5 else 1, -(-x.shape[-2] // p), -(-x.shape[-1] // p))
    pad = PADDED.get(family, 1)
    start = REGISTERS.get(family, 0) + -(-tokens // pad) * pad
    has_text_last = family == "hidream" or (family == "hunyuan_video" and _is_flipped(model))
    if family in CROSS or has_text_last or block.startswith("noise"):
        start = 0
    return Where(start + in_front, grid)


def _is_flipped(model: ModelPatcher) -> bool:
    return getattr(model.model.diffusion_model.double_blocks[0], "flipped_img_txt", False)


Perturb = Callable[[Seen, Where], Tensor]


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention (b, n, heads * d) by its formula. `mask` says what is seen, or is added to the logits."""
    logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if mask is not None:
        mask = mask.unsqueeze(1) if mask.ndim == 3 else mask
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
    return (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)


def see_text(seen: Seen, where: Where) -> Tensor:
    """A token of the picture sees itself, and all tokens that are not the picture."""
    n = seen.q.shape[2]
    allowed = torch.ones((n, n), dtype=torch.bool)
    allowed[where.picture, where.picture] = torch.eye(math.prod(where.grid), dtype=torch.bool)
    return attention(seen.q, seen.k, seen.v, _both(seen.mask, allowed))


def themselves(seen: Seen, where: Where) -> Tensor:
    """A token of the picture sees itself alone."""
    n = seen.q.shape[2]
    allowed = torch.ones((n, n), dtype=torch.bool)
    allowed[where.picture] = torch.eye(n, dtype=torch.bool)[where.picture]
    return attention(seen.q, seen.k, seen.v, _both(seen.mask, allowed))


def _both(mask: Tensor | None, allowed: Tensor) -> Tensor:
    if mask is None:
        return allowed
    while mask.ndim < 4:
        mask = mask.unsqueeze(max(0, mask.ndim - 2))
    if mask.dtype == torch.bool:
        return mask & allowed
    return (mask + torch.zeros_like(allowed, dtype=mask.dtype)).masked_fill(~allowed, -torch.inf)


def blurred(seen: Seen, where: Where, sigma: float = -1.0) -> Tensor:
    """The queries of the picture are blurred over the grid of each frame. Below 0 they are averaged."""
    q, (t, h, w) = seen.q.clone(), where.grid
    for frame in range(t):
        part = slice(where.start + frame * h * w, where.start + (frame + 1) * h * w)
        of_frame = seen.q[:, :, part]
        if sigma < 0:
            q[:, :, part] = of_frame.mean(2, keepdim=True)
            continue
        b, heads, _, d = of_frame.shape
        image = of_frame.reshape(b * heads, h, w, d).movedim(-1, 1)
        sides = [min(math.ceil(6 * sigma) | 1, side | 1) for side in (h, w)]
        q[:, :, part] = blur_by_the_sum(image, sigma, *sides).movedim(1, -1).reshape(b, heads, h * w, d)
    return attention(q, seen.k, seen.v, seen.mask)


def perturbed(family: str, model: ModelPatcher, x: Tensor, tokens: int, perturb: Perturb, in_front: int = 0,
              blocks: Sequence[str] = ()) -> ModelPatcher:  # fmt: skip
    """A clone of the model whose attentions of the picture are perturbed in the blocks of LAYERS, or in others."""
    chosen, last = blocks or LAYERS[family][1], [""]

    def change(number: int, seen: Seen, attend: Callable[[], Tensor]) -> Tensor:
        is_second, last[0] = seen.block == last[0], seen.block
        if seen.block not in chosen or (family in CROSS and is_second):
            return attend()
        at = where_of(family, model, x, tokens, seen.block, in_front)
        return perturb(seen, at._replace(start=0) if is_second else at)

    return overridden(model, change)


def predict(family: str, model: ModelPatcher, x: Tensor, positive: list, cfg: float = 1.0, **options: Any) -> Tensor:
    """What the model makes of pure noise x in one step."""
    frames = x.shape[2] if x.ndim == 5 else None
    return sample(family, model, cfg=cfg, steps=1, h=x.shape[-2], w=x.shape[-1], batch=len(x), start=x,
                  positive=positive, frames=frames, **options)  # fmt: skip


def guided(positive: Tensor, negative: Tensor, perturbed: Tensor, cfg: float, scale: float) -> Tensor:
    """CFG, and a step away from the perturbed prediction."""
    return negative + cfg * (positive - negative) + scale * (positive - perturbed)


@contextmanager
def around_blocks(
    model: ModelPatcher, blocks: Sequence[str], before: Callable[[str, tuple, dict], tuple | None],
    after: Callable[[str, Any], Any],
) -> Iterator[None]:  # fmt: skip
    """Hooks of torch around some blocks of the network. `before` may give other arguments, `after` another result."""
    network, hooks = model.model.diffusion_model, []
    for name in blocks:
        block = network.get_submodule(name)
        hooks.append(
            block.register_forward_pre_hook(
                lambda _, args, kwargs, name=name: before(name, args, kwargs), with_kwargs=True
            )
        )
        hooks.append(block.register_forward_hook(lambda _, args, out, name=name: after(name, out)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def streams_of(family: str, args: tuple, kwargs: Mapping[str, Any], out: Any) -> Any:
    """What a block was given of what it returns, in the order in which it returns it."""
    if not isinstance(out, tuple):
        return args[0] if args else kwargs[IMAGE[family]]
    if args:  # SD3 and AuraFlow give the text and the picture by their places
        return (args[0] if out[0] is not None else None, args[1])
    image, of_text = kwargs[IMAGE[family]], kwargs[TEXT[family]]
    return (of_text, image) if family in TEXT_FIRST else (image, of_text)


@contextmanager
def skipping(family: str, model: ModelPatcher, blocks: Sequence[str] = ()) -> Iterator[None]:
    """Inside the block of Python these blocks return what they were given. Tensors are copied before they run."""
    given: dict[str, tuple] = {}

    def note(name: str, args: tuple, kwargs: dict) -> None:
        def copied(value: Any) -> Any:
            return value.clone() if isinstance(value, Tensor) else value

        given[name] = tuple(map(copied, args)), {key: copied(value) for key, value in kwargs.items()}

    def give_back(name: str, out: Any) -> Any:
        return streams_of(family, *given.pop(name), out)

    with around_blocks(model, blocks or LAYERS[family][1], note, give_back):
        yield


@contextmanager
def shuffling(
    family: str, model: ModelPatcher, orders: Mapping[str, Tensor], where: Callable[[str], Where]
) -> Iterator[None]:  # fmt: skip
    """Inside the block of Python these blocks get the tokens of the picture in another order, undone behind."""

    def reordered(tokens: Tensor, name: str, order: Tensor) -> Tensor:
        flat, picture = tokens.flatten(1, -2).clone(), where(name).picture
        flat[:, picture] = flat[:, picture][:, order]
        return flat.view_as(tokens)

    def shuffle(name: str, args: tuple, kwargs: dict) -> tuple:
        if args:
            return (reordered(args[0], name, orders[name]), *args[1:]), kwargs
        key = IMAGE[family]
        return args, {**kwargs, key: reordered(kwargs[key], name, orders[name])}

    def undo(name: str, out: Any) -> Any:
        back = partial(reordered, name=name, order=orders[name].argsort())
        if not isinstance(out, tuple):
            return back(out)
        return (out[0], back(out[1])) if family in TEXT_FIRST else (back(out[0]), *out[1:])

    with around_blocks(model, [*orders], shuffle, undo):
        yield


def both_texts(family: str, tokens: tuple[int, int] = (5, 5), **conds: Any) -> tuple[list, list]:
    """A positive and a negative with so many tokens. Both have the further conds."""
    return tuple(text(seed, count, family, **conds) for seed, count in zip((1, 2), tokens, strict=True))
