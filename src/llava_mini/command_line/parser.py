"""Parser of a command's flags, and types of numbers: a mistake is one line on standard error and exit status 2."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NoReturn

from llava_mini.command_line.table import VALUES
from llava_mini.units import MOST, MOST_GIB


class Parser(argparse.ArgumentParser):
    """As `argparse.ArgumentParser`, which prints the usage before what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())} (see {self.prog} --help)\n")


class ConfigParser(Parser):
    """As `Parser`, of a command that takes flags and key=value; its help shows the config's groups and keys."""

    def format_help(self) -> str:
        from llava_mini.config.reference import help_text

        return f"{super().format_help()}\n{help_text()}\n\n{VALUES}\n"


def at_least(least: int) -> Callable[[str], int]:
    """Return a type for whole numbers of at least `least`, and no more than what is no mistake."""

    def count(text: str) -> int:
        if not text.isdecimal() or len(text) > len(str(MOST)) or not least <= int(text) <= MOST:
            raise argparse.ArgumentTypeError(f"{text}: allowed are whole numbers from {least} to {MOST}")
        return int(text)

    return count


def rate(text: str) -> float:
    """Parse a number above 0."""
    if (value := amount(text)) == 0:
        raise argparse.ArgumentTypeError(f"{text}: allowed are numbers above 0")
    return value


def amount(text: str) -> float:
    """Parse a number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: allowed are numbers from 0")
    return value


def gibibytes(text: str) -> float:
    """Parse an amount of memory in GiB, at most what a machine may have."""
    if (value := amount(text)) > MOST_GIB:
        raise argparse.ArgumentTypeError(f"{text}: allowed are numbers from 0 to {MOST_GIB}")
    return value
