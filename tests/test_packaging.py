"""Project files agree: dependencies with imports and with tested versions, the Makefile with what it says it does."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Where the name that is imported is not the name that is installed.
PACKAGE_OF = {"hydra": "hydra-core", "sklearn": "scikit-learn", "PIL": "pillow", "yaml": "pyyaml"}


def versions_tested() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def imported_packages() -> set[str]:
    found = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - {"llava_mini"}


def declared(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def test_every_import_is_declared_and_every_core_dependency_is_imported() -> None:
    imported = {canonicalize_name(PACKAGE_OF.get(name, name)) for name in imported_packages()}
    core = declared(PROJECT["dependencies"])
    extras = PROJECT["optional-dependencies"]
    assert core <= imported
    assert imported - core <= declared([*extras["data"], *extras["remote"], *extras["bench"], *extras["finetune"]])


def test_tested_versions_lie_within_the_bounds() -> None:
    tested = versions_tested()
    extras = [text for group in PROJECT["optional-dependencies"].values() for text in group]
    for requirement in map(Requirement, [*PROJECT["dependencies"], *extras]):
        if requirement.name != PROJECT["name"]:
            assert requirement.specifier.contains(tested[canonicalize_name(requirement.name)]), str(requirement)


def test_tested_versions_name_no_build_of_torch() -> None:
    assert re.fullmatch(r"[\d.]+", versions_tested()["torch"])
    assert not [name for name in versions_tested() if name.startswith(("nvidia", "cuda"))]


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"]}  # without what `make test` hands down to a make below it
    return subprocess.run(["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_help_lists_every_target_in_a_line() -> None:
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert targets is not None
    listed = [line.split()[1] for line in make("help").stdout.splitlines()]
    assert listed == targets[1].split()


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ([], "compressor=query,zero seed=0,1,2"),
        (["C=1,2,4,8"], "compressor=query,zero compressor.C=1,2,4,8 seed=0,1,2"),
        (["SEEDS=2", "SWEEP_DIR=sweeps/a"], "compressor=query,zero seed=0,1 --out sweeps/a"),
        (
            ["COMPRESSOR=query,avg_pool", "SEEDS=1", "N_FUSION=0,2", "ARGS=recipe=smoke order=paper"],
            "compressor=query,avg_pool fusion.num_layers=0,2 seed=0 recipe=smoke order=paper",
        ),
    ],
)
def test_sweep_adds_the_control_and_three_seeds_to_what_is_given(given: list[str], passed: str) -> None:
    call = make("--dry-run", "sweep", *given).stdout.splitlines()[-1]
    assert " ".join(call.split()) == f".venv/bin/llava-mini sweep {passed}".rstrip()


@pytest.mark.parametrize("seeds", ["0", "-1", "three", "1,2"])
def test_sweep_refuses_what_is_no_count_of_seeds(seeds: str) -> None:
    made = make("--dry-run", "sweep", f"SEEDS={seeds}")
    assert made.returncode == 2
    assert f"SEEDS={seeds}: allowed is a count of seeds, 1 to 99" in made.stderr
    assert "llava-mini" not in made.stdout
