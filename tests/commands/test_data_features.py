"""Features are computed by a command, told with their size and error, and read by a run that is pointed to them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llava_mini.cli import main
from llava_mini.commands.data_features import features
from llava_mini.config import resolve
from llava_mini.data.features.store import FeatureStore
from llava_mini.data.toyworld.make import make_world
from llava_mini.errors import UserError
from llava_mini.training.run import assemble

SIZES = {"board-train": 64, "board-val": 16, "board-test": 16}
Smoke = Callable[..., list[str]]


@pytest.fixture
def world(world_dir: Path) -> Path:
    return make_world(world_dir / "toyworld", seed=0, sizes=SIZES)


def test_features_of_the_command_line_are_read_by_training(
    smoke: Smoke, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    out = tmp_path / "features"
    for name in SIZES:
        given = [str(world / name), "--out", str(out), "--dtype", "int8", "--batch-size", "10", "--workers", "1"]
        assert features([*given, *smoke()]) == 0
    said = capsys.readouterr().out
    assert "1x64x96 int8 of 16 images" in said
    assert "KiB an image" in said  # 64 * 96 and a scale for each of 96 channels, with headers
    assert f"train with data.features={out}" in said
    stores = [FeatureStore(folder) for folder in out.iterdir()]
    assert {len(store) for store in stores} == {64, 16} and all(0 < store.error.relative < 0.02 for store in stores)

    config = resolve(smoke(f"data.features={out}"))
    stored = assemble(config).datamodule
    assert len(list(out.iterdir())) == 3, "nothing was computed anew"
    direct = assemble(resolve(smoke("data.features=false")))
    a, b = (next(data.evaluation_batches("val", "cpu")) for data in (direct.datamodule, stored))
    with torch.no_grad():
        exact = direct.model.encode(a.pixel_values)
    relative = (b.image_features - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert 0 < float(relative) < 0.02


def test_the_tower_alone_gives_what_the_whole_model_gives(smoke: Smoke, world: Path, tmp_path: Path):
    given = [str(world / "board-val"), "--out", str(tmp_path), "--dtype", "float32"]
    assert features([*given, *smoke()]) == 0
    (folder,) = tmp_path.glob("*/shards.json")
    assemble(resolve(smoke(f"data.features={tmp_path}", "data.train=null", "data.val=board-val", "data.test=null")))
    assert [*tmp_path.glob("*/shards.json")] == [folder], "the whole model's tower has another fingerprint"


def test_mistakes_are_named(smoke: Smoke, world: Path, tmp_path: Path):
    given = [str(world / "board-val"), "--out", str(tmp_path / "f")]
    with pytest.raises(UserError, match="none of them contains a vision tower"):
        features([*given, *smoke("model.weights=[]")])
    with pytest.raises(UserError, match="is no complete shard set"):
        features([str(tmp_path), "--out", str(tmp_path / "f"), *smoke()])
    with pytest.raises(UserError, match="unknown key model.wrong|model.wrong"):
        features([*given, *smoke("model.wrong=1")])
    with pytest.raises(SystemExit):
        features([*given, "--dtype", "int4", *smoke()])
    assert features([*given, *smoke()]) == 0
    with pytest.raises(UserError, match="holds these features as float16; delete it or name another --out"):
        features([*given, "--dtype", "int8", *smoke()])


def test_the_command_line_knows_it(capsys: pytest.CaptureFixture[str]):
    for arguments, told in {("data", "features", "--help"): "0.56 MiB", ("data", "--help"): "features"}.items():
        with pytest.raises(SystemExit) as ended:
            main([*arguments])
        assert ended.value.code == 0 and told in capsys.readouterr().out
    assert main(["data", "features", "nowhere", "--out", "x"]) == 2
    told = capsys.readouterr().err.strip()
    assert told == "llava-mini: nowhere is no complete shard set (it has no shards.json)"
