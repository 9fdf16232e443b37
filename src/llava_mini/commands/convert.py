"""`llava-mini convert official|to-official|llava SRC DST`: convert other LLaVA projects' weights to ours, and back."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from llava_mini.command_line.parser import Parser, at_least
from llava_mini.errors import named_as

_OFFICIAL = """\
Reads a folder of the official LLaVA-Mini release (config.json; safetensors or pytorch_model*.bin, whole or in shards)
and writes a model that `from_pretrained` loads, with the processor where the folder has a tokenizer."""

_TO_OFFICIAL = """\
Writes a model of this program as the official release has it: its config.json, its tensor names, safetensors."""

_LLAVA = """\
Reads LLaVA-v1.5 or 1.6, as transformers has them (llava-hf/...) or as they were released (liuhaotian/llava-v1.5-7b),
and writes a LLaVA-Mini model as a start for stage 2: vision tower, projector and language model are taken over,
compressor and pre-fusion are initialized. It is to real models what model.start=uncompressed is to the toy world: a
run learns to compress, not to answer. What went where is printed part by part."""

_EXAMPLES = """\
examples:
  llava-mini convert llava checkpoints/llava-1.5-7b-hf checkpoints/start --C 1
  llava-mini convert official checkpoints/llava-mini-llama-3.1-8b checkpoints/mini
  llava-mini convert to-official runs/mine/model exported"""


_FLAGS = {"compressor.C": "--C", "num_fusion_layers": "--fusion-layers", "vision_tower": "--vision-tower"}


def convert(arguments: list[str], _config_dirs: tuple[str, ...] = ()) -> int:
    """Run a subcommand.

    Raises:
        UserError: SRC is not such a checkpoint, or DST exists; then nothing is written.
    """
    options = vars(_parser().parse_args(arguments))
    run = {"official": _official, "to-official": _to_official, "llava": _llava}[options.pop("command")]
    with named_as(_FLAGS):
        run(**options)
    return 0


def _official(source: Path, target: Path, vision_tower: str | None) -> None:
    from llava_mini.data.text.templates import LLAMA3
    from llava_mini.models.interop.convert import convert_official

    convert_official(source, target, vision_tower, LLAMA3.chat_template())


def _to_official(source: Path, target: Path, vision_tower: str | None) -> None:
    from llava_mini.models.interop.export import convert_to_official
    from llava_mini.models.interop.parts import CLIP_ID

    convert_to_official(source, target, vision_tower or CLIP_ID)


def _llava(source: Path, target: Path, vision_tower: str | None, **chosen: Any) -> None:
    from llava_mini.config import resolve
    from llava_mini.data.text.templates import VICUNA
    from llava_mini.models.interop.convert import convert_llava

    compressor = resolve(["compressor=query", f"compressor.C={chosen['C']}"]).compressor.spec()
    layers, init = chosen["fusion_layers"], chosen["init"]
    convert_llava(
        source, target, compressor=compressor, num_fusion_layers=layers, init=init, vision_tower=vision_tower,
        chat_template=VICUNA.chat_template(),
    )  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="llava-mini convert",
        description="Weights in and out. Nothing is written unless all of SRC fits.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command", title="commands")
    official = commands.add_parser("official", help="the official release to ours", description=_OFFICIAL)
    back = commands.add_parser("to-official", help="ours to the official release", description=_TO_OFFICIAL)
    llava = commands.add_parser("llava", help="LLaVA-v1.5 or 1.6 as a start for stage 2", description=_LLAVA)
    for each in (official, back, llava):
        each.add_argument("source", type=Path, metavar="SRC", help="a folder with config.json and weights")
        each.add_argument("target", type=Path, metavar="DST", help="a folder that is not there yet")
    for each in (official, llava):
        each.add_argument(
            "--vision-tower", metavar="PLACE", help="folder or Hub id of the vision tower, if SRC does not contain it"
        )
    back.add_argument("--vision-tower", metavar="NAME", help="what config.json names as the vision tower")
    llava.add_argument(
        "--init", choices=("identity", "copy", "random"), default="identity", help="of pre-fusion (default: identity)"
    )
    llava.add_argument("--C", type=at_least(0), default=1, metavar="N", help="side of the grid (default: 1)")
    llava.add_argument("--fusion-layers", type=at_least(0), default=4, metavar="N", help="N_fusion (default: 4)")
    return parser
