"""`llava-mini merge RUN DST`: a run with adapters or a 4-bit base as one plain model, in transformers' format.

The base is rebuilt from the run's config with the weights that the run computed with. For a 4-bit base these are the
quantized values, so the plain model answers as the trained one did.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from safetensors import SafetensorError

from llava_mini import assembly
from llava_mini.command_line.parser import Parser
from llava_mini.config import Config, import_own, load
from llava_mini.errors import UserError
from llava_mini.evaluate.accuracy import evaluate
from llava_mini.files import new_folder
from llava_mini.finetune import check_packages, fingerprints, is_adapted, load_trained, merge_adapters
from llava_mini.finetune.quantization import rounded_linear
from llava_mini.models import LlavaMiniForConditionalGeneration, LlavaMiniProcessor
from llava_mini.predictions import Predictions
from llava_mini.training.results import save_model

log = logging.getLogger("llava_mini")


def merge(arguments: list[str], _config_dirs: tuple[str, ...] = ()) -> int:
    """Run the command, and return 1 when `--check` finds answers that differ."""
    parser = Parser(prog="llava-mini merge", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("destination", type=Path, metavar="DST", help="folder that is made")
    parser.add_argument("--check", action="store_true", help="compare the plain model's answers with the run's")
    parser.add_argument("--config-dir", action="append", default=[], help="folder with the run's own compressor")
    given = parser.parse_args(arguments)
    config = _config(given.run)
    import_own(config.compressor.target, tuple(given.config_dir))
    merge_run(given.run, config, given.destination)
    log.info("%s: a plain model of %s", given.destination, given.run)
    return int(given.check and not same_answers(given.run, config, given.destination))


def merge_run(run_dir: Path, config: Config, destination: Path) -> None:
    """Write the plain model of a run, completely or not at all.

    It is merged in float32 and saved in the type of the run's frozen weights, if that was another.

    Raises:
        UserError: the base is another one, files do not match the config, or the destination exists or cannot be
            written.
    """
    check_packages(config.finetune)
    with new_folder(destination) as temporary:
        model, processor = _merged(run_dir, config)
        try:
            save_model(model, processor, temporary)
        except SafetensorError as error:
            raise UserError(f"{destination}: cannot be written ({error})") from error


def _merged(run_dir: Path, config: Config) -> tuple[LlavaMiniForConditionalGeneration, LlavaMiniProcessor]:
    tokenizer, model = assembly.build_base(config)
    found = fingerprints(model)
    assembly.build_stage(config, model, linear_4bit=rounded_linear)  # it marks which weights were trained
    model.float()
    load_trained(model, run_dir / "model", config.finetune, found)
    merge_adapters(model, config.finetune)
    model.to(assembly.frozen_dtype(config) or torch.float32)
    return model, assembly.build_processor(config, model, tokenizer)


def same_answers(run_dir: Path, config: Config, folder: Path) -> bool:
    """Whether the plain model is right in exactly the questions in which the run was; logs both accuracies."""
    model = LlavaMiniForConditionalGeneration.from_pretrained(folder).eval()
    processor = LlavaMiniProcessor.from_pretrained(folder)
    datamodule = assembly.build_datamodule(config, model, processor)
    alike = True
    for split in (split for split in ("val", "test") if split in datamodule.splits):
        before = Predictions.load(run_dir / f"predictions_{split}.npz")
        after = evaluate(model, datamodule.evaluation_batches(split, model.device)).predictions()
        same = int((before.exact_match == after.exact_match).sum())
        log.info(
            "%s: accuracy of the run %.4f, of the plain model %.4f; %d of %d answers alike",
            split, before.accuracy(), after.accuracy(), same, len(after.key),
        )  # fmt: skip
        alike &= same == len(after.key)
    return alike


def _config(run_dir: Path) -> Config:
    """Return the config of a finished run that has something to merge.

    Raises:
        UserError: the folder is not such a run.
    """
    config = load(run_dir / "config.yaml")
    if not (run_dir / "result.json").is_file():
        raise UserError(f"{run_dir}: the run is not finished; `llava-mini train` with its config continues it")
    if not is_adapted(config.finetune):
        raise UserError(
            f"{run_dir}: no run with adapters or a base in 4 bits; its `model` folder is a plain model already"
        )
    return config
