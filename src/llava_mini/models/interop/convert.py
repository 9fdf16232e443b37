"""Folders of other projects' checkpoints to folders of ours and back, tensor by tensor, in the memory of one shard.

Everything is checked before the first tensor is written, and a folder appears when it is complete.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoProcessor

from llava_mini.errors import UserError
from llava_mini.files import new_folder
from llava_mini.models.configuration import CLIP_VIT_L_336, LlavaMiniConfig
from llava_mini.models.image_processor import build_image_processor
from llava_mini.models.initialisation import initialise
from llava_mini.models.interop import llava, official
from llava_mini.models.interop.checkpoint import (
    Checkpoint,
    check_plain,
    check_shapes,
    config_trusted,
    read_config,
    some,
)
from llava_mini.models.interop.layout import Layout
from llava_mini.models.interop.parts import CLIP_ID, Tower, load_vision_tower
from llava_mini.models.interop.shards import ShardWriter
from llava_mini.models.llava_mini import LlavaMiniForConditionalGeneration
from llava_mini.models.processor import LlavaMiniProcessor
from llava_mini.models.tokenizer import add_placeholder, has_tokenizer, load_tokenizer
from llava_mini.models.vision_tower import HD_VIEWS, SINGLE_VIEW
from llava_mini.views import ViewMode

log = logging.getLogger("llava_mini")

_BUFFERS = ("rotary_emb.inv_freq", "embeddings.position_ids")  # computed; checkpoints of old versions hold them
_TEXT_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "generation_config.json",
)  # fmt: skip
_OWN_HEAD = "language_model.lm_head.weight"
_OURS = Layout((("", ""),))


def convert_official(source: Path, target: Path, vision_tower: str | None = None) -> None:
    """The official release's folder to ours.

    Args:
        source: With config.json and weights under the release's names.
        target: A new folder in transformers' format.
        vision_tower: Folder or Hub id of the vision tower: its config, and its weights if `source` holds none. Default:
            the CLIP that the release was trained with.

    Raises:
        UserError: `source` is no such checkpoint or `target` is there; then nothing is written.
    """
    fields = _config_of(source, target)
    official.check_config(fields)
    tower = Tower(fields.get("mm_vision_tower"), vision_tower)
    config = official.our_config(fields, tower.config)
    views: ViewMode = "square" if fields.get("image_aspect_ratio", "square") == "square" else "pad"
    if fields.get("resolution_ratio", 1) == 2:
        views = "hd"
    _Conversion(source, official.LAYOUT, config, tower).write(target, views)


def convert_llava(
    source: Path,
    target: Path,
    *,
    compressor: dict[str, Any],
    num_fusion_layers: int,
    init: str,
    vision_tower: str | None = None,
) -> None:
    """A LLaVA-v1.5 or 1.6 folder, transformers' or the original, to ours, as a start for stage 2.

    Vision tower, projector and language model are taken over; the compressor is a new one.

    Args:
        source: With config.json and weights.
        target: A new folder in transformers' format.
        compressor: As in a model's config.
        num_fusion_layers: N_fusion.
        init: "copy" (pre-fusion starts as the language model's first layers) or "random".
        vision_tower: As in `convert_official`.

    Raises:
        UserError: `source` is no such checkpoint or `target` is there; then nothing is written.
    """
    fields = _config_of(source, target)
    checkpoint = Checkpoint.of(source)
    found = llava.source_of(fields, checkpoint.shapes)
    tower = Tower(found.vision_tower, vision_tower, found.vision_config)
    layers = found.text_config.num_hidden_layers
    if init == "copy" and num_fusion_layers > layers:
        raise UserError(f"--fusion-layers {num_fusion_layers}: copies at most the language model's {layers} layers")
    image_token_id = found.text_config.vocab_size if found.image_token_id is None else found.image_token_id
    config = LlavaMiniConfig(
        vision_config=tower.config,
        text_config=found.text_config,
        image_token_id=image_token_id,
        vision_feature_layer=found.vision_feature_layer,
        projector_hidden_act=found.projector_hidden_act,
        compressor=compressor,
        num_fusion_layers=num_fusion_layers,
    )
    _Conversion(source, found.layout, config, tower, init).write(target, found.views)


def convert_to_official(source: Path, target: Path, vision_tower: str = CLIP_ID) -> None:
    """Our folder to the official release's.

    Args:
        source: A model in transformers' format.
        target: A new folder.
        vision_tower: What the release's config names as its vision tower; the weights are in the folder all the same.

    Raises:
        UserError: `source` is no model of ours or one that the release cannot express, or `target` is there.
    """
    _config_of(source, target)
    config = LlavaMiniConfig.from_pretrained(source)
    checkpoint = Checkpoint.of(source)
    model = _on_meta(config)
    checkpoint.check_floats(_floating(model))
    check_shapes(source, checkpoint.shapes, _shapes(model), str)
    views = AutoProcessor.from_pretrained(source).views if has_tokenizer(source) else "square"
    fields = official.official_config(config, views, vision_tower)
    with new_folder(target) as folder:
        writer = ShardWriter(folder)
        for name, tensor in checkpoint.stream():
            writer.add(official.LAYOUT.theirs(name), tensor)
        writer.close()
        dtype = str(checkpoint.dtype).removeprefix("torch.")
        (folder / "config.json").write_text(json.dumps({**fields, "torch_dtype": dtype}, indent=2) + "\n")
        for name in _TEXT_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
    log.info("%s: %d tensors under the official release's names", target, len(checkpoint.shapes))
    own = config.vision_config.to_dict()
    if other := [f"{key}={own[key]}" for key, value in CLIP_VIT_L_336.items() if own[key] != value]:
        log.warning(
            "%s: the vision tower is no CLIP ViT-L/14-336 (%s), and the release reads its shape from %s: "
            "--vision-tower names a place that has it", target, ", ".join(other), vision_tower,
        )  # fmt: skip


def _config_of(source: Path, target: Path) -> dict[str, Any]:
    """config.json of `source`, which lies apart from `target` and is not quantised."""
    here, there = source.resolve(), target.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise UserError(f"{target}: lies in {source} or around it; allowed is a folder apart from it")
    fields = read_config(source)
    check_plain(source, fields)
    return fields


class _Conversion:
    """One checkpoint under another project's names, on its way to a folder of ours."""

    def __init__(self, source: Path, layout: Layout, config: LlavaMiniConfig, tower: Tower, init: str | None = None):
        self.source, self.layout, self.config, self.init = source, layout, config, init
        self.checkpoint = Checkpoint.of(source)
        self.model = _on_meta(config)
        self.needed, floating = _shapes(self.model), _floating(self.model)
        self.names = {name: layout.ours(name) for name in self.checkpoint.shapes if not name.endswith(_BUFFERS)}
        if init is not None:
            self.names = {name: ours for name, ours in self.names.items() if not name.endswith(llava.LEFT_OUT)}
        if config.text_config.tie_word_embeddings:
            self.names = {name: ours for name, ours in self.names.items() if ours != _OWN_HEAD}
        if twice := [name for name, count in Counter(self.names.values()).items() if count > 1]:
            raise UserError(f"{source}: two tensors for {some(twice)}")
        self.checkpoint.check_floats(name for name, ours in self.names.items() if ours in floating)
        self.others = self._other_parts(tower)
        self.copies = self._copies()
        made = {*self.others, *self.copies.values()}
        check_shapes(
            source,
            {ours: self.checkpoint.shapes[name] for name, ours in self.names.items()},
            {name: shape for name, shape in self.needed.items() if name not in made},
            layout.theirs,
        )

    def write(self, target: Path, views: ViewMode) -> None:
        """Make the folder."""
        with new_folder(target) as folder:
            if has_tokenizer(self.source):
                processor = self._processor(views)
                self.config.image_token_id = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
                processor.save_pretrained(folder)
            writer = ShardWriter(folder)
            dtype = self.checkpoint.dtype
            for name, tensor in self.checkpoint.stream():
                if name in self.names:
                    ours = self.names[name]
                    writer.add(ours, tensor)
                    if ours in self.copies:
                        writer.add(self.copies[ours], tensor)
            for name, tensor in self.others.items():
                writer.add(name, tensor.to(dtype) if tensor.is_floating_point() else tensor)
            writer.close()
            self.config.dtype = dtype
            self.config.architectures = [LlavaMiniForConditionalGeneration.__name__]
            self.config.save_pretrained(folder)
            if (self.source / "generation_config.json").is_file():
                shutil.copyfile(self.source / "generation_config.json", folder / "generation_config.json")
        self._report(target)

    def _other_parts(self, tower: Tower) -> dict[str, Tensor]:
        """What the checkpoint does not hold: a vision tower that was never trained, parts that only LLaVA-Mini has."""
        others: dict[str, Tensor] = {}
        self.origin = dict.fromkeys(("vision_tower", "projector", "language_model"), f"from {self.source}")
        if tower.place and not any(name.startswith("vision_tower.") for name in self.names.values()):
            try:
                loaded = load_vision_tower(tower.place, self.checkpoint.dtype).state_dict()
            except UserError as error:
                raise UserError(
                    f"{error}; {self.source} holds none: --vision-tower names its folder or Hub id"
                ) from error
            others |= {f"vision_tower.{name}": tensor for name, tensor in loaded.items()}
            self.origin["vision_tower"] = f"from {tower.place}"
        if self.init is None:
            self.origin |= dict.fromkeys(("compressor", "prefusion"), f"from {self.source}")
            return others
        self.origin |= {"compressor": "initialised", "prefusion": f"initialised ({self.init})"}
        fresh = ("compressor",) if self.init == "copy" else ("compressor", "prefusion")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # a conversion gives the same folder again
            initialise(self.model, fresh)
        for part in fresh:
            state = self.model.get_submodule(part).state_dict()
            others |= {f"{part}.{name}": tensor for name, tensor in state.items()}
        return others

    def _copies(self) -> dict[str, str]:
        """Tensors of the language model's first layers to the names of pre-fusion's that start as they are."""
        if self.init != "copy":
            return {}
        layers = "prefusion.layers."
        wanted = [name for name in self.needed if name.startswith(layers)]
        return {f"language_model.model.layers.{name.removeprefix(layers)}": name for name in wanted}

    def _processor(self, views: ViewMode) -> LlavaMiniProcessor:
        text, vision = self.config.text_config, self.config.vision_config
        tokenizer = load_tokenizer(str(self.source), config=text)
        add_placeholder(tokenizer, text.vocab_size)
        return LlavaMiniProcessor(
            build_image_processor(vision),
            tokenizer,
            num_image_tokens=self.model.tokens_per_frame(SINGLE_VIEW),
            num_hd_image_tokens=self.model.tokens_per_frame(HD_VIEWS),
            views=views,
        )

    def _report(self, target: Path) -> None:
        """Say part by part where its tensors come from."""
        counts = Counter(name.split(".")[0] for name in self.needed)
        for part, count in counts.items():
            log.info("%s: %d tensors %s", part, count, self.origin[part])
        left = [name for name in self.checkpoint.shapes if name not in self.names]
        for name in left:
            log.info("left out: %s %s", name, self.checkpoint.shapes[name])
        if not has_tokenizer(self.source):
            log.info("%s holds no tokenizer: %s is a model without a processor", self.source, target)
        log.info("%s: written in %s", target, str(self.checkpoint.dtype).removeprefix("torch."))


def _on_meta(config: LlavaMiniConfig) -> LlavaMiniForConditionalGeneration:
    with config_trusted(), torch.device("meta"):
        return LlavaMiniForConditionalGeneration(config)


def _shapes(model: LlavaMiniForConditionalGeneration) -> dict[str, list[int]]:
    """Of what a checkpoint of the model holds."""
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    if model.config.text_config.tie_word_embeddings:
        del shapes[_OWN_HEAD]
    return shapes


def _floating(model: LlavaMiniForConditionalGeneration) -> set[str]:
    """Names of the tensors that hold floating numbers."""
    return {name for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
