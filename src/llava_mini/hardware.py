"""Which GPU this machine has, whether the installed torch supports it, and how much memory is free.

A build of torch contains kernels for some architectures only (`torch.cuda.get_arch_list()`). A newer torch may have
dropped an old GPU, and an older torch does not know a new GPU. The sources are PyTorch's release notes: Volta (V100) is
in the cu126 builds, the last of which are torch 2.14's; Blackwell (RTX 5090) needs cu128 or later, cu130 here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from llava_mini.errors import UserError, refused
from llava_mini.units import GIB, MIB

WHEELS = "https://download.pytorch.org/whl"
# Memory of a card that a process takes and torch's allocator does not count: CUDA's context and kernels, by experience
# 0.4 to 0.6 GiB, and the fragments that the allocator cannot use.
CUDA_CONTEXT = 640 * MIB

_OLD_BUILD, _NEW_BUILD = "cu126", "cu130"
_NEW_BUILD_SINCE = (7, 5)  # cu130 builds have Turing and later
_CGROUP = Path("/sys/fs/cgroup")
# Files of a control group with its limit and its usage, and the field for reclaimable memory: versions 2 and 1.
_GROUP_FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
_BF16_SINCE = (8, 0)  # Ampere; before it torch emulates bfloat16, which is slower than float32


@dataclass(frozen=True)
class Card:
    """A GPU as its driver describes it.

    Attributes:
        name: Name that the driver reports.
        capability: Compute capability, (7, 0) for a V100.
        memory_bytes: Total memory in bytes.
    """

    name: str
    capability: tuple[int, int]
    memory_bytes: int

    def __str__(self) -> str:
        major, minor = self.capability
        return f"{self.name} ({self.memory_bytes / GIB:.1f} GiB, compute capability {major}.{minor})"


def find_cards() -> list[Card]:
    """Return this machine's NVIDIA GPUs, from torch or else from the driver's own tool (torch may be a CPU build)."""
    if torch.cuda.is_available():
        every = (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
        return [Card(one.name, (one.major, one.minor), one.total_memory) for one in every]
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,compute_cap,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
        return parse_cards(answer)
    except (subprocess.SubprocessError, OSError, ValueError):
        return []  # without an answer from the driver no GPU can be used


def free_bytes(device: torch.device) -> int:
    """Return the memory of a device that is still available, in bytes.

    On a GPU this includes what torch has reserved but not allocated, within the process's share
    (`torch.cuda.set_per_process_memory_fraction`). On a CPU it is within the limits of the process's control groups.
    """
    if device.type != "cuda":
        return min([_free_in_host(), *_free_in_groups(Path("/proc/self/cgroup"), _CGROUP)])
    free, total = torch.cuda.mem_get_info(device)
    allocated = torch.cuda.memory_allocated(device)
    within = int(total * torch.cuda.get_per_process_memory_fraction(device)) - allocated
    return max(0, min(free + torch.cuda.memory_reserved(device) - allocated, within))


def _free_in_groups(groups: Path, root: Path) -> list[int]:
    """Return the free bytes of each control group of a process that has a limit, from its own group up to the root.

    Cached files also count as a group's memory but can be reclaimed, so they count as free here.

    Args:
        groups: File with lines "number:controllers:/path"; "0::/path" is version 2.
        root: Folder where the groups are mounted.
    """
    if not groups.exists():
        return []
    free = []
    for line in groups.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        mount = root / controllers
        limit, used, cached = _GROUP_FILES[controllers]
        own = mount / path.lstrip("/")
        for folder in (own, *own.parents):
            if folder.is_relative_to(mount) and (folder / limit).exists() and (folder / used).exists():
                most = (folder / limit).read_text().strip()
                if most != "max":
                    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                    free.append(max(0, int(most) - int((folder / used).read_text()) + int(stat.get(cached, 0))))
    return free


def _free_in_host() -> int:
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():  # not Linux: half of the physical memory is a careful guess
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def parse_cards(answer: str) -> list[Card]:
    """Parse the driver's list of GPUs: name, compute capability and MiB of memory, one GPU per line.

    Raises:
        ValueError: a line has another form.
    """
    cards = []
    for line in answer.strip().splitlines():
        name, capability, mebibytes = (cell.strip() for cell in line.rsplit(",", 2))
        major, minor = capability.split(".")
        cards.append(Card(name, (int(major), int(minor)), int(mebibytes) * MIB))
    return cards


def drives(arch_list: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether a build of torch with these architectures has kernels that run on a GPU of this compute capability.

    Binary kernels (`sm_80`) run on GPUs of the same major capability that are as new or newer; `compute_90` is
    compiled by the driver for any GPU that is as new or newer.

    Args:
        arch_list: Architectures as `torch.cuda.get_arch_list()` returns them.
        capability: Compute capability of the GPU.
    """
    for arch in arch_list:
        kind, _, digits = arch.partition("_")
        digits = digits.rstrip("af")  # sm_90a: for exactly this architecture
        if not digits.isdigit():
            continue
        built = (int(digits[:-1]), int(digits[-1]))
        if kind == "sm" and built[0] == capability[0] and built[1] <= capability[1]:
            return True
        if kind == "compute" and built <= capability:
            return True
    return False


def build_for(capability: tuple[int, int]) -> str:
    """Return the torch wheel index that supports a GPU: cu126 for GPUs older than Turing, else cu130."""
    return _NEW_BUILD if capability >= _NEW_BUILD_SINCE else _OLD_BUILD


def install_command(build: str) -> str:
    """Return the command that installs a build of torch."""
    bound = '"torch>=2.11,<2.14"'
    return f"pip install --force-reinstall {bound} --index-url {WHEELS}/{build}"


def has_bf16(capability: tuple[int, int]) -> bool:
    """Whether a GPU supports bfloat16 in hardware."""
    return capability >= _BF16_SINCE


def check_card(card: Card, arch_list: Sequence[str], precision: str) -> None:
    """Check before a run that it can work on a GPU.

    Args:
        card: GPU of the run.
        arch_list: Architectures as `torch.cuda.get_arch_list()` returns them.
        precision: Value of the config's `trainer.precision`.

    Raises:
        UserError: the installed torch has no kernels for the GPU, or the GPU lacks bfloat16; it says what to do.
    """
    if not drives(arch_list, card.capability):
        raise UserError(
            f"{card}: torch {torch.__version__} is built for {', '.join(arch_list) or 'no card'};"
            f" {install_command(build_for(card.capability))}"
        )
    if precision.startswith("bf16") and not has_bf16(card.capability):
        allowed = "16-mixed (hardware=v100_32gb) and 32-true"
        raise refused("trainer.precision", precision, f"{card} has no bfloat16", allowed=allowed)


def card_to_measure() -> Card:
    """Return the first GPU, for commands that measure one.

    Raises:
        UserError: torch finds no GPU or does not support it, or it has no bfloat16.
    """
    if not torch.cuda.is_available():
        raise UserError("torch finds no GPU here; --tiny tries the command on the CPU")
    card = find_cards()[0]
    check_card(card, torch.cuda.get_arch_list(), "bf16-mixed")
    return card
