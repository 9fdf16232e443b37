"""Which graphics card this machine has, whether the installed torch can drive it, how much memory is free, or wanting.

A build of torch holds kernels for some architectures only (`torch.cuda.get_arch_list()`): a newer torch may have
dropped an old card, an older one does not know a new card. The sources are PyTorch's release notes: Volta (V100) is in
the cu126 builds, the last of which are torch 2.14's; Blackwell (RTX 5090) needs cu128 or later, cu130 here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from llava_mini.errors import UserError

WHEELS = "https://download.pytorch.org/whl"
_OLD_BUILD, _NEW_BUILD = "cu126", "cu130"
_NEW_BUILD_SINCE = (7, 5)  # cu130 builds have Turing and later
_CGROUP = Path("/sys/fs/cgroup")
# Files of a control group that tell its limit and what is used, and of what is used what gives way: versions 2 and 1.
_GROUP_FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
_NO_HOST_MEMORY = ("DefaultCPUAllocator", "not enough memory", "std::bad_alloc")  # in what torch says without any
_BF16_SINCE = (8, 0)  # Ampere; before it torch emulates bfloat16, which is slower than float32


@dataclass(frozen=True)
class Card:
    """A graphics card as its driver describes it.

    Attributes:
        name: The driver's name of it.
        capability: Compute capability, (7, 0) for a V100.
        memory_bytes: Its whole memory.
    """

    name: str
    capability: tuple[int, int]
    memory_bytes: int

    def __str__(self) -> str:
        return f"{self.name} ({self.memory_bytes / 2**30:.1f} GiB, compute capability {_dotted(self.capability)})"


def find_cards() -> list[Card]:
    """NVIDIA's cards here: by torch where it finds them, else by the driver's own tool (torch may be a CPU build)."""
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
        return []  # a driver that does not answer is no card that can be used


def memory_text(size: int) -> str:
    """Bytes of memory for people: 1.50 GiB; in MiB or KiB what would be less than a hundredth."""
    for power, unit in ((30, "GiB"), (20, "MiB")):
        if abs(size) >= 0.01 * 2**power:
            return f"{size / 2**power:.2f} {unit}"
    return f"{size / 2**10:.2f} KiB"


def free_bytes(device: torch.device) -> int:
    """Memory of a device that can still be had.

    On a GPU also what torch holds unused, within the share that the process may take
    (`torch.cuda.set_per_process_memory_fraction`); on a CPU within the limits of its control groups.
    """
    if device.type != "cuda":
        return min([_free_in_host(), *_free_in_groups(Path("/proc/self/cgroup"), _CGROUP)])
    free, total = torch.cuda.mem_get_info(device)
    allocated = torch.cuda.memory_allocated(device)
    within = int(total * torch.cuda.get_per_process_memory_fraction(device)) - allocated
    return max(0, min(free + torch.cuda.memory_reserved(device) - allocated, within))


def _free_in_groups(groups: Path, root: Path) -> list[int]:
    """What each control group of a process, from its own up to the root's, leaves free; none without a limit.

    Files that were read fill a group's memory too, but give way: they count as free.

    Args:
        groups: Lines "number:controllers:/path"; "0::/path" is version 2.
        root: Where the groups are mounted.
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
    if not meminfo.exists():  # not Linux: the half of it is a careful guess
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is for want of memory, of a device or of the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_HOST_MEMORY)


def reason_of(error: BaseException) -> str:
    """What torch or Python says is wanting, in few words."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:160]


def parse_cards(answer: str) -> list[Card]:
    """Cards from the driver's list: name, capability, MiB of memory, a line a card.

    Raises:
        ValueError: for a line of another form.
    """
    cards = []
    for line in answer.strip().splitlines():
        name, capability, mebibytes = (cell.strip() for cell in line.rsplit(",", 2))
        major, minor = capability.split(".")
        cards.append(Card(name, (int(major), int(minor)), int(mebibytes) * 2**20))
    return cards


def drives(arch_list: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether a build of torch with these architectures has kernels that such a card runs.

    Binary kernels (`sm_80`) run on cards of the same major capability that are as new or newer; `compute_90` is
    compiled by the driver for anything as new or newer.

    Args:
        arch_list: As `torch.cuda.get_arch_list()` has it.
        capability: The card's.
    """
    for arch in arch_list:
        kind, _, digits = arch.partition("_")
        digits = digits.rstrip("af")  # sm_90a: for this very architecture
        if not digits.isdigit():
            continue
        built = (int(digits[:-1]), int(digits[-1]))
        if kind == "sm" and built[0] == capability[0] and built[1] <= capability[1]:
            return True
        if kind == "compute" and built <= capability:
            return True
    return False


def build_for(capability: tuple[int, int]) -> str:
    """The index of torch's wheels that drive such a card: cu126 for what came before Turing, else cu130."""
    return _NEW_BUILD if capability >= _NEW_BUILD_SINCE else _OLD_BUILD


def install_command(build: str) -> str:
    """How that build of torch is installed."""
    bound = '"torch>=2.11,<2.14"'
    return f"pip install --force-reinstall {bound} --index-url {WHEELS}/{build}"


def has_bf16(capability: tuple[int, int]) -> bool:
    """Whether a card computes in bfloat16 by itself."""
    return capability >= _BF16_SINCE


def check_card(card: Card, arch_list: Sequence[str], precision: str) -> None:
    """Find what would stop a run on a card before it begins.

    Args:
        card: That it would run on.
        arch_list: As `torch.cuda.get_arch_list()` has it.
        precision: The config's `trainer.precision`.

    Raises:
        UserError: the installed torch has no kernels for the card, or the card no bfloat16; it says what to do.
    """
    if not drives(arch_list, card.capability):
        raise UserError(
            f"{card}: torch {torch.__version__} is built for {', '.join(arch_list) or 'no card'};"
            f" {install_command(build_for(card.capability))}"
        )
    if precision.startswith("bf16") and not has_bf16(card.capability):
        raise UserError(
            f"trainer.precision={precision}: {card} has no bfloat16;"
            " allowed are 16-mixed (hardware=v100_32gb) and 32-true"
        )


def card_to_measure() -> Card:
    """The first card, for commands that measure one.

    Raises:
        UserError: torch finds none, or cannot drive it, or it has no bfloat16.
    """
    if not torch.cuda.is_available():
        raise UserError("torch finds no GPU here; --tiny tries the command on the CPU")
    card = find_cards()[0]
    check_card(card, torch.cuda.get_arch_list(), "bf16-mixed")
    return card


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
