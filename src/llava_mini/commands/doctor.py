"""`llava-mini doctor`: what is installed, whether it supports the GPUs found here, and what to install instead."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from llava_mini.command_line.parser import Parser
from llava_mini.errors import UserError
from llava_mini.finetune.packages import require
from llava_mini.hardware import build_for, drives, find_cards, has_bf16, install_command

# Part of this program that needs each package.
_PACKAGES = {
    "torch": "all",
    "lightning": "training",
    "transformers": "all",
    "peft": "LoRA, QLoRA",
    "bitsandbytes": "QLoRA, 8-bit optimizers",
    "mlflow": "tracking",
    "av": "videos",
    "simplejpeg": "fast JPEGs",
}
_EXTRAS = {"peft": "finetune", "bitsandbytes": "finetune", "av": "data", "simplejpeg": "data"}


def doctor(arguments: list[str], _config_dirs: tuple[str, ...] = ()) -> int:
    """Print the diagnosis, and return 1 if the installed torch does not support a GPU that was found."""
    parser = Parser(prog="llava-mini doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object in place of text")
    given = parser.parse_args(arguments)
    report = diagnosis()
    if given.json:
        print(json.dumps(report, indent=1))
    else:
        print("\n".join(_lines(report)))
    return 1 if any(card["problem"] for card in report["cards"]) else 0


def diagnosis() -> dict[str, Any]:
    """Return what is installed, which GPUs were found, what does not work together, and what to do.

    Returns:
        python, packages (name -> version or null), torch_cuda, arch_list, cards (each with `problem`, null or a
        sentence), bitsandbytes (a sentence), advice (sentences).
    """
    arch_list = torch.cuda.get_arch_list()
    cards, advice = [], []
    for card in find_cards():
        problem = None
        if not drives(arch_list, card.capability):
            built = ", ".join(arch_list) if arch_list else "no card (a CPU build)"
            problem = f"torch {torch.__version__} is built for {built}"
            advice.append(f"for {card.name}: {install_command(build_for(card.capability))}")
        bf16 = has_bf16(card.capability)
        cards.append({**asdict(card), "text": str(card), "bfloat16": bf16, "problem": problem})
    packages = {name: _version(name) for name in _PACKAGES}
    advice += [_missing(name) for name, found in packages.items() if found is None]
    return {
        "python": platform.python_version(),
        "packages": packages,
        "torch_cuda": torch.version.cuda,
        "arch_list": arch_list,
        "cards": cards,
        "bitsandbytes": four_bits() if packages["bitsandbytes"] else "not tried",
        "advice": list(dict.fromkeys(advice)),
    }


def four_bits() -> str:
    """Return as a sentence whether 4-bit layers of bitsandbytes work here: it may be installed and lack kernels."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        layer = (
            require("bitsandbytes.nn", "4-bit layers")
            .Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4")
            .to(device)
        )
        found = layer(torch.ones(1, 64, device=device))
        exact = bool(torch.isfinite(found).all())
    except UserError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001  # a library without its kernels may raise anything
        return f"does not work on {device}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return f"4-bit layers work on {device}" if exact else f"4-bit layers give no numbers on {device}"


def _missing(name: str) -> str:
    extra = f"[{_EXTRAS[name]}]" if name in _EXTRAS else ""
    return f"for {_PACKAGES[name]}: pip install 'llava-mini-lab{extra}' (brings {name})"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _lines(report: dict[str, Any]) -> list[str]:
    lines = [f"Python {report['python']}"]
    for name, found in report["packages"].items():
        lines.append(f"{name:<14} {found or 'not installed':<16} {_PACKAGES[name]}")
    built = report["torch_cuda"]
    lines.append(f"torch's build  {f'CUDA {built} for ' + ', '.join(report['arch_list']) if built else 'CPU'}")
    lines.append(f"bitsandbytes   {report['bitsandbytes']}")
    for card in report["cards"]:
        lines.append(f"card           {card['text']}{'' if card['bfloat16'] else ', no bfloat16: hardware=v100_32gb'}")
        lines.append(f"               {card['problem'] or 'can be used'}")
    if not report["cards"]:
        lines.append("card           none found: runs are on the CPU")
    lines += [f"advice         {line}" for line in report["advice"]]
    return lines
