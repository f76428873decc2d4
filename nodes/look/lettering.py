"""Labels under pictures, in any script for which this machine has a font."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..inputs.drawing import BACKGROUND, INK

SMALLEST, LARGEST, SHARE = 12, 48, 16  # of the letters in pixels; the height of a picture is so many times theirs
FONTS = (  # with the letters that Pillow's own font lacks, as Linux, Windows and macOS name them
    "DejaVuSans.ttf", "LiberationSans-Regular.ttf", "NotoSans-Regular.ttf", "arial.ttf", "Arial Unicode.ttf",
    "NotoSansCJK-Regular.ttc", "NotoSansKR-Regular.otf", "NanumGothic.ttf", "malgun.ttf", "AppleSDGothicNeo.ttc",
    "NotoSansJP-Regular.otf", "ipag.ttf", "YuGothM.ttc", "msgothic.ttc", "Hiragino Sans GB.ttc",
    "NotoSansSC-Regular.otf", "wqy-zenhei.ttc", "msyh.ttc", "simsun.ttc", "PingFang.ttc", "seguisym.ttf",
)  # fmt: skip
NO_LETTER = "\U0010ffff"  # which no font has
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
logger = logging.getLogger(__name__)


def lettered(labels: Sequence[str], lefts: Sequence[int], widths: Sequence[int], height: int) -> Tensor:
    """Returns a strip (h, w, 3) with each label in the middle below its picture, for pictures of a `height`.

    The strip ends with the last picture. A label that is wider than its picture goes on in the next line.
    """
    size = min(max(height // SHARE, SMALLEST), LARGEST)
    font = font_for("".join(labels), size)
    wrapped = [wrap(label, width, font) for label, width in zip(labels, widths, strict=True)]
    line = round(1.4 * size)
    image = Image.new("RGB", (lefts[-1] + widths[-1], max(map(len, wrapped)) * line + size // 2), BACKGROUND)
    pen = ImageDraw.Draw(image)
    for lines, left, width in zip(wrapped, lefts, widths, strict=True):
        for i, text in enumerate(lines):
            pen.text((left + width / 2, size // 4 + (i + 0.5) * line), text, INK, font, anchor="mm")
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)


def wrap(text: str, width: float, font: Font) -> list[str]:
    """Returns the lines of a text, none wider than `width` pixels unless one letter is.

    A line ends at a space if it has one, else anywhere.
    """
    lines = []
    while text:
        end = len(text)
        while end > 1 and font.getlength(text[:end].rstrip()) > width:
            end -= 1
        space = text.rfind(" ", 0, end + 1)
        if end < len(text) and space > 0:
            end = space
        lines.append(text[:end].rstrip())
        text = text[end:].lstrip()
    return lines


def font_for(text: str, size: int) -> Font:
    """Returns Pillow's own font if it has all letters of a text, else the first of this machine's that has the most.

    A warning in the log names letters that no font has.
    """
    best = ImageFont.load_default(size)
    lacking = missing(text, best)
    for name in FONTS if lacking else ():
        font = installed(name, size)
        if font is None:
            continue
        if len(left := missing(text, font)) < len(lacking):
            best, lacking = font, left
        if not lacking:
            break
    if lacking:
        logger.warning(
            f"labels should have letters that a font of this machine has, but none has {lacking}. They are drawn as "
            f"empty boxes. Install a font that has them, such as Noto Sans CJK."
        )
    return best


def installed(name: str, size: int) -> Font | None:
    """Returns a font of this machine by the name of its file, or None."""
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


def missing(text: str, font: Font) -> str:
    """Returns the letters of a text that a font lacks, each once."""
    box = _drawn(NO_LETTER, font)
    letters = (letter for letter in dict.fromkeys(text) if unicodedata.category(letter)[0] in "LNPS")
    return "".join(letter for letter in letters if _drawn(letter, font) == box)


def _drawn(letter: str, font: Font) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter)
    return mask.size, bytes(mask)
