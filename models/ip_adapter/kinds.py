"""What an IP-Adapter file (2308.06721) can be, and the image encoder that it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from torch import Tensor, nn

from ..foreign_files import few

Weights = Mapping[str, Tensor]
PROJECTION = ("image_proj_model.", "image_proj.")
LAYERS = ("ip_adapter.", "adapter_modules.")
TRAINED_WITH = ("unet.",)  # in training dumps: the frozen model itself

# The name of the encoder that a file needs, by what is read of the encoder and the width of that.
ENCODERS = {
    ("image_embeds", 1024): "CLIP-ViT-H-14-laion2B-s32B-b79K",
    ("image_embeds", 1280): "CLIP-ViT-bigG-14-laion2B-39B-b160k",
    ("image_embeds", 768): "clip-vit-large-patch14",
    ("image_embeds", 96): "the CLIP_VISION of the Demo Model node",
    ("penultimate_hidden_states", 1280): "CLIP-ViT-H-14-laion2B-s32B-b79K",
    ("penultimate_hidden_states", 1664): "CLIP-ViT-bigG-14-laion2B-39B-b160k",
    ("penultimate_hidden_states", 1024): "clip-vit-large-patch14-336",
    ("penultimate_hidden_states", 1152): "sigclip_vision_patch14_384 (SigLIP so400m)",
    ("image_embeds", 1152): "sigclip_vision_patch14_384 (SigLIP so400m)",
    ("penultimate_hidden_states", 128): "the CLIP_VISION of the Demo Model node",
}
SIGLIP_WIDTH, SIGLIP_PATCHES = 1152, 729  # of SigLIP so400m at 384 pixels. At 512 pixels there are 1024 patches.


Form = Literal["unet", "sd3", "xlabs", "instantx"]  # the network, and whose file for it


class Kind(NamedTuple):
    """What a file is, and what its projection reads. `tokens` is 0 if there is one for each hidden state.

    `context` is the width of a token. It is that of the text, except for the faces of Kolors, whose model narrows both.
    Tokens of Stable Diffusion 3.5 change with time. So what is kept are the hidden states that they are made of.
    """

    name: Literal["linear", "plus", "full", "face", "face plus", "face resampler", "timed", "pooled"]
    tokens: int
    context: int
    reads: Literal["image_embeds", "penultimate_hidden_states"] | None  # of the image encoder
    width: int = 0  # of what it reads
    face: int = 0  # width of a face's identity
    form: Form = "unet"
    shortcut: bool = False  # the picture's answer is added to the identity (FaceID plus v2)

    @property
    def encoder(self) -> str:
        """The name of the image encoder that the file needs."""
        return ENCODERS.get((self.reads, self.width), f"an encoder whose {self.reads} are {self.width} wide")

    @property
    def patches(self) -> int:
        """How many hidden states of a picture the file reads. 0: as many as there are.

        Encoders of other sizes are as wide as SigLIP, so the width does not tell them.
        """
        return SIGLIP_PATCHES if self.width == SIGLIP_WIDTH and self.form in ("sd3", "instantx") else 0


class AdapterParts(NamedTuple):
    """A file taken apart. `sizes` has (hidden, context) for each attention."""

    kind: Kind
    make_projection: Callable[..., nn.Module]
    projection: dict[str, Tensor]
    layers: dict[str, Tensor]
    make_layers: Callable[..., nn.Module]
    sizes: list[tuple[int, int]]
    lora: dict[str, Tensor]  # by number of the attention, e.g. 0.to_q_lora.down.weight


def group(weights: Weights, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors with one of these prefixes, without it."""
    return {
        key.removeprefix(prefix): value
        for key, value in weights.items()
        for prefix in prefixes
        if key.startswith(prefix)
    }


def check_all_known(weights: Weights, prefixes: tuple[str, ...], name: str) -> None:
    """Raises ValueError if a file has tensors with none of these prefixes."""
    unknown = [key for key in weights if not key.startswith(prefixes)]
    if unknown:
        raise ValueError(f"{name} has tensors that no known IP-Adapter has: {few(unknown)}. Download it again.")
