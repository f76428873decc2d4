"""The training runs by name, and the functions that measure their files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from .base import BaseTask
from .clip_vision import ClipVisionTask
from .control_net import ControlNetTask
from .control_net_numbers import control_net_numbers
from .controlnext import ControlNeXtTask
from .controlnext_numbers import controlnext_numbers
from .dit import DiTTask
from .dit_ip_adapter import DiTIPAdapterTask
from .dit_ip_adapter_numbers import dit_ip_adapter_numbers
from .dit_numbers import dit_numbers
from .ip_adapter import IPAdapterTask
from .ip_adapter_numbers import ip_adapter_numbers
from .numbers import base_numbers, clip_vision_numbers, style_numbers
from .prompt_diffusion import PromptDiffusionTask
from .prompt_diffusion_numbers import prompt_diffusion_numbers
from .style import StyleTask
from .trainer import Task
from .unicon import UniConTask
from .unicon_numbers import unicon_numbers


class Run(NamedTuple):
    """Makes a task for a device, and the lines of numbers for the card of its file."""

    make: Callable[[torch.device], Task]
    numbers: Callable[[Path], Iterable[str]]


RUNS = {
    "base": Run(BaseTask, base_numbers),
    "checked": Run(StyleTask, style_numbers),
    "clip-vision": Run(ClipVisionTask, clip_vision_numbers),
    "controlnet": Run(ControlNetTask, control_net_numbers),
    "controlnext": Run(ControlNeXtTask, controlnext_numbers),
    "dit": Run(DiTTask, dit_numbers),
    "dit-ip-adapter": Run(DiTIPAdapterTask, dit_ip_adapter_numbers),
    "ip-adapter": Run(IPAdapterTask, ip_adapter_numbers),
    "prompt-diffusion": Run(PromptDiffusionTask, prompt_diffusion_numbers),
    "unicon": Run(UniConTask, unicon_numbers),
}
