"""`llava-mini data features`: store the frozen vision tower's features of every image of a shard set, as shards."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable
from pathlib import Path

from llava_mini.command_line.parser import ConfigParser, at_least
from llava_mini.config import check_each_once, resolve
from llava_mini.data.features.codec import FEATURE_TYPES
from llava_mini.data.format.shard_set import ShardSet
from llava_mini.errors import UserError
from llava_mini.units import size_text

log = logging.getLogger("llava_mini")

_ABOUT = """\
Stores the frozen vision tower's features of every image, which training then reads in place of pixels:
data.features=OUT. The tower is that of the config: model=..., model.weights=[...], data.views=..., as in `train`.

It pays where one set is read many times by small language models (sweeps, several epochs), so that the tower would be
most of the work, and the disk is fast. An image of CLIP ViT-L/14 at 336 pixels has 576x1024 numbers and takes 1.13
MiB as float16 or 0.56 MiB as int8 (a JPEG of 640x480 takes about 0.1 MiB), and five times that with data.views=hd,
where frames of videos keep one view. The command says what storing changed. Repeat it to continue after an
interruption."""

_EXAMPLES = """\
examples:
  llava-mini data features data/captions --out data/features recipe=mine
  llava-mini data features s3://bucket/mix --out data/features --dtype int8 model=mine data.cache_dir=/scratch/cache"""

_LOG_SECONDS = 10.0


def features(arguments: list[str]) -> int:
    """Run the command.

    Raises:
        UserError: a mistake in the arguments or in what they name.
    """
    options = _parser().parse_intermixed_args(arguments)
    check_each_once(options.overrides)
    config = resolve(options.overrides, tuple(options.config_dir))
    cache_dir = config.data.cache_dir
    shards = ShardSet(options.folder, cache_dir=None if cache_dir is None else Path(cache_dir))

    from llava_mini import assembly  # takes seconds to import, so mistakes are reported before

    assembly.seed_run(config)
    tokenizer = assembly.build_tokenizer(config)
    model = assembly.build_vision_model(config, tokenizer)
    store = assembly.store_features(
        config,
        model,
        assembly.build_processor(config, model, tokenizer),
        shards,
        options.out,
        options.dtype,
        batch_size=options.batch_size,
        num_workers=options.workers,
        on_shard=_progress(shards.num_shards),
    )
    if store.dtype != options.dtype:
        raise UserError(f"{store.folder} holds these features as {store.dtype}; delete it or name another --out")
    views, patches, width = store.shape
    each = size_text(store.bytes / max(store.images, 1))
    print(f"{store.folder}: {views}x{patches}x{width} {store.dtype} of {store.images} images")
    print(f"{each} an image, {size_text(store.bytes)} in all, computed in {store.seconds:.0f} s")
    print(f"stored numbers are off by {store.error.largest:.2g} at most, by {store.error.relative:.2%} of all (RMS)")
    if store.unusable:
        print(f"{store.unusable} samples have images that cannot be used")
    print(f"train with data.features={options.out}")
    return 0


def _progress(num_shards: int) -> Callable[[int], None]:
    """Return a function that logs from time to time how many shards are complete."""
    last = time.monotonic()

    def log_now_and_then(complete: int) -> None:
        nonlocal last
        if time.monotonic() - last > _LOG_SECONDS:
            last = time.monotonic()
            log.info("%d of %d shards", complete, num_shards)

    return log_now_and_then


def _parser() -> argparse.ArgumentParser:
    parser = ConfigParser(
        prog="llava-mini data features",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="DIR", help="a shard set: a folder or a URL (s3://..., https://...)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for features of any sets and towers")
    parser.add_argument("--dtype", choices=FEATURE_TYPES, default="float16", help="(default: float16)")
    parser.add_argument("--batch-size", type=at_least(1), default=64, metavar="N", help="views at a time (default: 64)")
    parser.add_argument(
        "--workers", type=at_least(0), default=0, metavar="N", help="processes that decode (default: 0)"
    )
    parser.add_argument("--config-dir", action="append", default=[], help="a further folder with config groups")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config values, as in `llava-mini train`")
    return parser
