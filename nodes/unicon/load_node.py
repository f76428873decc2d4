"""Loads and saves a UniCon (2410.11439)."""

from __future__ import annotations

from pathlib import Path

from comfy_api.latest import io

from ...engine.folders import files_in, folders_in, path_of
from ...models.unicon.files import SETS
from ..inputs.save import numbered_path
from ..inputs.schema import make_input, prefix_input, schema
from ..inputs.sockets import UniConSocket
from .load import MODEL_FILE, read_unicon, save_unicon
from .side_by_side import UniCon, checked_unicon

FOLDER, AUTO = "unicon", "auto"


class UniConLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_UniConLoader",
            display_name="Load UniCon",
            category="reins/unicon",
            description="Loads a UniCon: depth, edges, a pose, a person or a look as a second picture that is sampled "
            "beside the first.",
            search_aliases=["unicon", "depth", "joint generation", "pose", "edge", "identity"],
            inputs=[
                make_input(
                    io.Combo, "name", options=_choices(),
                    tooltip="A folder of a release in models/unicon, its model.pth alone, or one .safetensors file.",
                ),
                make_input(
                    io.String, "trigger", default=AUTO,
                    tooltip="What the condition's prompt begins with. auto: what the file says, or what the authors "
                    "use for files of this name (depth, edge, pose). Empty: nothing.",
                ),
            ],
            outputs=[UniConSocket.Output(tooltip="For UniCon Apply, UniCon Apply Joint and UniCon Prompt.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, name: str, trigger: str = AUTO) -> io.NodeOutput:
        is_folder = name in folders_in(FOLDER, MODEL_FILE)
        path = path_of(FOLDER, str(Path(name) / MODEL_FILE)).parent if is_folder else path_of(FOLDER, name)
        return io.NodeOutput(read_unicon(path, name, None if trigger == AUTO else trigger))


class UniConSave(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="Reins_UniConSave",
            display_name="Save UniCon",
            category="reins/unicon",
            description="Writes a UniCon of any form as one .safetensors file in output/unicon, where Load UniCon "
            "finds it: quick to load, and without any code in it.",
            search_aliases=["convert unicon", "unicon safetensors"],
            inputs=[
                UniConSocket.Input("unicon", tooltip="From Load UniCon."),
                prefix_input("unicon"),
            ],
            outputs=[],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, unicon: UniCon, filename_prefix: str) -> io.NodeOutput:
        save_unicon(checked_unicon(unicon), numbered_path(FOLDER, filename_prefix))
        return io.NodeOutput()


def _choices() -> list[str]:
    """Returns folders, then files. Of the files of which a folder consists only model.pth is offered alone."""
    files = [name for name in files_in(FOLDER) if Path(name).parent.name not in SETS]
    return [*folders_in(FOLDER, MODEL_FILE), *files]
