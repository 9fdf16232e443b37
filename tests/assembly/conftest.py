"""Configs of a small model without weights, with the data of the smoke recipe in the test's own folder."""

from collections.abc import Callable
from pathlib import Path

import pytest

from llava_mini import assembly
from llava_mini.config import Config, resolve
from llava_mini.data.toyworld.tokenizer import build_tokenizer
from llava_mini.models import LlavaMiniForConditionalGeneration

SMALL = ["model.text_config.num_hidden_layers=2", "fusion.num_layers=2", "model.vision_config.num_hidden_layers=1"]
Resolve = Callable[..., Config]


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy world's tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer().save_pretrained(str(folder))
    return folder


@pytest.fixture
def config_of(tokenizer_dir: Path, tmp_path: Path) -> Resolve:
    """config_of("key=value", ...): a small model without weights, data in tmp_path/world."""

    def make(*overrides: str) -> Config:
        places = ["model.weights=[]", f"model.tokenizer={tokenizer_dir}", f"data.folder={tmp_path / 'world'}"]
        return resolve(["recipe=smoke", *SMALL, *places, f"run_dir={tmp_path / 'run'}", *overrides])

    return make


@pytest.fixture(scope="session")
def model_of() -> Callable[[Config], LlavaMiniForConditionalGeneration]:
    """model_of(config): the config's model, from its seed."""

    def make(config: Config) -> LlavaMiniForConditionalGeneration:
        assembly.seed_run(config)
        return assembly.build_model(config, assembly.build_tokenizer(config))

    return make
