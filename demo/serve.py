"""Starts a ComfyUI with the pack linked in and keeps it running until Ctrl-C.

python -m demo.serve --comfy DIR --base-directory DIR [--port N] [--checkpoint FILE]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import signal
import sys
from pathlib import Path

from .graphs import EXAMPLE_CHECKPOINT
from .host import (
    ROOT,
    Host,
    HostDied,
    HostSettings,
    check_port,
    has_accelerator,
    offer_file,
    weightless_arguments,
    write_weightless,
)


def offer_examples(settings: HostSettings, checkpoint: str) -> None:
    """Copies the examples to the user's saved workflows, with the checkpoint that this server has.

    An example that the user has changed since is not overwritten.
    """
    folder = settings.base / "user" / "default" / "workflows" / "reins"
    folder.mkdir(parents=True, exist_ok=True)
    record = settings.base / "reins-examples.json"  # what was written, by name
    written = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    for path in (ROOT / "example_workflows").glob("*.json"):
        text = path.read_text(encoding="utf-8").replace(EXAMPLE_CHECKPOINT, checkpoint)
        copy = folder / path.name
        if copy.is_file() and digest(copy.read_text(encoding="utf-8")) != written.get(path.name):
            continue
        copy.write_text(text, encoding="utf-8")
        written[path.name] = digest(text)
    record.write_text(json.dumps(written), encoding="utf-8")


def offer_photographs(settings: HostSettings) -> None:
    """Copies the photographs and their hints to where Load Image looks. A file of the same name stays as it is."""
    folder = settings.base / "input"
    folder.mkdir(parents=True, exist_ok=True)
    for path in (ROOT / "demo" / "photographs").iterdir():
        if not (folder / path.name).exists():
            shutil.copy(path, folder)


def digest(text: str) -> str:
    """The hash of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def serve(options: argparse.Namespace) -> int:
    """Runs the server until it ends. Returns its exit code.

    Raises HostDied if the server ends with an error.
    """
    comfy = options.comfy.resolve()
    settings = HostSettings(
        comfy,
        options.base_directory.resolve(),
        cpu=not has_accelerator(),
        port=options.port,
        arguments=() if options.checkpoint else weightless_arguments(comfy),
    )
    check_port(options.port)
    settings.checkpoints.mkdir(parents=True, exist_ok=True)
    if options.checkpoint:
        checkpoint = offer_file(options.checkpoint, settings.checkpoints)
    else:
        checkpoint = write_weightless(comfy, "sd15-min", settings.checkpoints)
        print("without --checkpoint FILE the examples for Stable Diffusion draw noise; those of the demo model do not")
    offer_examples(settings, checkpoint)
    offer_photographs(settings)
    print(f"starting ComfyUI ({comfy}); its files are in {settings.base}", flush=True)
    with Host(settings) as host:
        print(
            f"open {host.url}  (checkpoint: {checkpoint}; the examples are under Workflows, reins; Ctrl-C ends)",
            flush=True,
        )
        code = host.wait()
        if code != 0:
            raise HostDied(f"the server ended with {code}:\n{host.log_tail()}")
        return code


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is ended on the way out
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comfy", type=Path, required=True)
    parser.add_argument("--base-directory", type=Path, required=True)
    parser.add_argument("--port", type=int, default=8188)
    parser.add_argument("--checkpoint", type=Path)
    options = parser.parse_args()
    if options.checkpoint and not options.checkpoint.is_file():
        parser.error(f"there is no checkpoint file {options.checkpoint}")
    try:
        return serve(options)
    except HostDied as error:
        print(f"serve: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
