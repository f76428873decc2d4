"""A pack beside ours in the servers of the fault tests: says what the host holds, and lets it run short."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import comfy.model_management as management
from aiohttp import web
from comfy.model_base import BaseModel
from server import PromptServer
from torch import Tensor

NODE_CLASS_MAPPINGS: dict = {}
GIVEN = management.get_free_memory

rows: list[int] = []
apply_model = BaseModel.apply_model


def counted(self: BaseModel, x: Tensor, *arguments: Any, **named: Any) -> Tensor:
    rows.append(len(x))
    return apply_model(self, x, *arguments, **named)


BaseModel.apply_model = counted
routes = PromptServer.instance.routes


@routes.get("/probe/models")
async def models(request: web.Request) -> web.Response:
    """The class of each network that the host holds at this moment."""
    held = [loaded.model for loaded in management.current_loaded_models]
    return web.json_response([type(patcher.model).__name__ for patcher in held if patcher is not None])


@routes.get("/probe/rows")
async def asked(request: web.Request) -> web.Response:
    """How many rows each call of a network had since this was asked last."""
    told = list(rows)
    rows.clear()
    return web.json_response(told)


@routes.get("/probe/misbehave")
async def misbehave(request: web.Request) -> web.Response:
    """As if the pack wrote a file and reached for somebody, to see that it would be noticed."""
    runpy.run_path(str(Path(__file__).parent / "ComfyUI-Reins" / "misdeeds.py"))
    return web.json_response({})


@routes.post("/probe/free")
async def free(request: web.Request) -> web.Response:
    """From now on so many bytes are free, whatever the truth is; null gives the truth back."""
    told = (await request.json())["bytes"]

    def short(dev: object = None, torch_free_too: bool = False) -> int | tuple[int, int]:
        return (told, told) if torch_free_too else told

    management.get_free_memory = GIVEN if told is None else short
    return web.json_response({})
