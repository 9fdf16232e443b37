"""Conversion of other projects' checkpoint folders to ours, tensor by tensor, in the memory of one shard.

Everything is checked before the first tensor is written, and a folder appears only when it is complete.
"""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava_mini.errors import UserError, refused
from llava_mini.files import copy_file, write_json
from llava_mini.models.configuration import LlavaMiniConfig
from llava_mini.models.image_processor import build_image_processor
from llava_mini.models.initialization import initialize
from llava_mini.models.interop import llava, official
from llava_mini.models.interop.chat import own_chat_template
from llava_mini.models.interop.checkpoint import COMPUTED, Checkpoint, Layout, check_shapes, some
from llava_mini.models.interop.folders import (
    OWN_HEAD,
    PROCESSOR_FILE,
    floating,
    on_meta,
    source_config,
    stored_shapes,
    written,
)
from llava_mini.models.interop.json_config import config_trusted
from llava_mini.models.interop.parts import Tower, load_vision_tower
from llava_mini.models.interop.shards import ShardWriter
from llava_mini.models.llava_mini import LlavaMiniForConditionalGeneration
from llava_mini.models.prefusion import is_layer_output
from llava_mini.models.processor import LlavaMiniProcessor
from llava_mini.models.tokenizer import add_placeholder, has_tokenizer, load_tokenizer
from llava_mini.token_layout import HD_VIEWS, SINGLE_VIEW
from llava_mini.views import ViewMode

log = logging.getLogger("llava_mini")

_TOWER, _LAYERS = "vision_tower.", "prefusion.layers."


def convert_official(
    source: Path, target: Path, vision_tower: str | None = None, chat_template: str | None = None
) -> None:
    """Convert the official release's folder to ours.

    The vision tower (folder or Hub id; by default the CLIP that the release was trained with) gives its config, and its
    weights if `source` contains none. The chat template is saved with the processor if `source` has none that shows
    images.

    Raises:
        UserError: `source` is not such a checkpoint or `target` exists; then nothing is written.
    """
    fields = source_config(source, target)
    with config_trusted(source):
        official.check_config(fields)
    tower = Tower(fields.get("mm_vision_tower"), vision_tower)
    with config_trusted(source):
        config = official.our_config(fields, tower.config)
    views: ViewMode = "square" if fields.get("image_aspect_ratio", "square") == "square" else "pad"
    if fields.get("resolution_ratio", 1) == 2:
        views = "hd"
    _Conversion(source, official.LAYOUT, config, tower).write(target, views, chat_template)


def convert_llava(
    source: Path,
    target: Path,
    *,
    compressor: dict[str, Any],
    num_fusion_layers: int,
    init: str,
    vision_tower: str | None = None,
    chat_template: str | None = None,
) -> None:
    """Convert a LLaVA-v1.5 or 1.6 folder, transformers' or the original, to ours, as a start for stage 2.

    Vision tower, projector and language model are taken over; the compressor is new. Pre-fusion starts as `init`
    says: copies of the language model's first layers that return their input ("identity") or are left as they are
    ("copy"), or "random". `vision_tower` and `chat_template` are used as in `convert_official`.

    Raises:
        UserError: `source` is not such a checkpoint or `target` exists; then nothing is written.
    """
    fields = source_config(source, target)
    checkpoint = Checkpoint.of(source)
    with config_trusted(source):
        found = llava.source_of(fields, checkpoint.shapes)
    held = any(found.layout.ours(name).startswith(_TOWER) for name in checkpoint.shapes)
    if vision_tower is not None and found.vision_config is not None and held:
        reason = f"{source} contains its vision tower itself; leave the option out"
        raise refused("vision_tower", vision_tower, reason)
    tower = Tower(found.vision_tower, vision_tower, found.vision_config)
    layers = found.text_config.num_hidden_layers
    if init != "random" and num_fusion_layers > layers:
        reason = f"copies at most the language model's {layers} layers"
        raise refused("num_fusion_layers", num_fusion_layers, reason)
    image_token_id = found.text_config.vocab_size if found.image_token_id is None else found.image_token_id
    with config_trusted(source):
        config = LlavaMiniConfig(
            vision_config=tower.config,
            text_config=found.text_config,
            image_token_id=image_token_id,
            vision_feature_layer=found.vision_feature_layer,
            projector_hidden_act=found.projector_hidden_act,
            compressor=compressor,
            num_fusion_layers=num_fusion_layers,
        )
    _Conversion(source, found.layout, config, tower, init).write(target, found.views, chat_template)


class _Conversion:
    """Conversion of one checkpoint with another project's names to a folder of ours."""

    def __init__(self, source: Path, layout: Layout, config: LlavaMiniConfig, tower: Tower, init: str | None = None):
        self.source, self.layout, self.config, self.init = source, layout, config, init
        self.checkpoint = Checkpoint.of(source)
        self.model = on_meta(source, config)
        self.needed, floats = stored_shapes(self.model), floating(self.model)
        self.names = {name: layout.ours(name) for name in self.checkpoint.shapes if not name.endswith(COMPUTED)}
        if init is not None:
            self.names = {name: ours for name, ours in self.names.items() if not name.endswith(llava.LEFT_OUT)}
        if config.text_config.tie_word_embeddings:
            self.names = {name: ours for name, ours in self.names.items() if ours != OWN_HEAD}
        if twice := [name for name, count in Counter(self.names.values()).items() if count > 1]:
            raise UserError(f"{source}: two tensors for {some(twice)}")
        self.checkpoint.check_floats(name for name, ours in self.names.items() if ours in floats)
        self.others = self._other_parts(tower)
        self.copies = self._copies()
        made = {*self.others, *self.copies.values()}
        check_shapes(
            source,
            {ours: self.checkpoint.shapes[name] for name, ours in self.names.items()},
            {name: shape for name, shape in self.needed.items() if name not in made},
            layout.theirs,
        )

    def write(self, target: Path, views: ViewMode, chat_template: str | None) -> None:
        """Write the converted folder."""
        with written(target) as folder:
            if has_tokenizer(self.source):
                processor = self._processor(views)
                processor.chat_template = own_chat_template(self.source, processor) or chat_template
                self.config.image_token_id = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
                processor.save_pretrained(folder)
            else:
                write_json(folder / PROCESSOR_FILE, self._without_tokenizer(views))
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
                copy_file(self.source / "generation_config.json", folder / "generation_config.json")
        self._report(target)

    def _other_parts(self, tower: Tower) -> dict[str, Tensor]:
        """Return tensors that the checkpoint lacks: a never-trained vision tower, parts that only LLaVA-Mini has."""
        others: dict[str, Tensor] = {}
        self.origin = dict.fromkeys(("vision_tower", "projector", "language_model"), f"from {self.source}")
        if tower.place and not any(name.startswith(_TOWER) for name in self.names.values()):
            try:
                loaded = load_vision_tower(tower.place, self.checkpoint.dtype).state_dict()
            except UserError as error:
                why = f"{error}; {self.source} holds none: vision_tower names its folder or Hub id"
                raise UserError(why, key="vision_tower", value=tower.place) from error
            others |= {f"{_TOWER}{name}": tensor for name, tensor in loaded.items()}
            needed = {name: shape for name, shape in self.needed.items() if name.startswith(_TOWER)}
            check_shapes(tower.place, {name: list(each.shape) for name, each in others.items()}, needed, str)
            self.origin["vision_tower"] = f"from {tower.place}"
        if self.init is None:
            self.origin |= dict.fromkeys(("compressor", "prefusion"), f"from {self.source}")
            return others
        self.origin |= {"compressor": "initialized", "prefusion": f"initialized ({self.init})"}
        fresh = ("compressor", "prefusion") if self.init == "random" else ("compressor",)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # a repeated conversion gives the same folder
            initialize(self.model, fresh)
        for part in fresh:
            state = self.model.get_submodule(part).state_dict()
            others |= {f"{part}.{name}": tensor for name, tensor in state.items()}
        if self.init == "identity":
            zeros = [name for name in self.needed if name.startswith(_LAYERS) and is_layer_output(name)]
            others |= {name: torch.zeros(self.needed[name]) for name in zeros}
        return others

    def _copies(self) -> dict[str, str]:
        """Map tensors of the language model's first layers to those of pre-fusion that start as their copies."""
        if self.init not in ("copy", "identity"):
            return {}
        wanted = [name for name in self.needed if name.startswith(_LAYERS) and name not in self.others]
        return {f"language_model.model.layers.{name.removeprefix(_LAYERS)}": name for name in wanted}

    def _processor(self, views: ViewMode) -> LlavaMiniProcessor:
        text, vision = self.config.text_config, self.config.vision_config
        tokenizer = load_tokenizer(str(self.source), config=text)
        add_placeholder(tokenizer, text.vocab_size)
        return LlavaMiniProcessor(
            build_image_processor(vision),
            tokenizer,
            **self._frames(views),
        )

    def _frames(self, views: ViewMode) -> dict[str, Any]:
        """Fields of a processor that describe frames."""
        single, hd = (self.model.layout.frame(count) for count in (SINGLE_VIEW, HD_VIEWS))
        return {"num_image_tokens": single, "num_hd_image_tokens": hd, "views": views}

    def _without_tokenizer(self, views: ViewMode) -> dict[str, Any]:
        """Fields of a processor's file without the tokenizer; without them nothing says how images become views."""
        images = build_image_processor(self.config.vision_config).to_dict()
        kind = LlavaMiniProcessor.__name__
        return {"processor_class": kind, "image_processor": images, **self._frames(views)}

    def _report(self, target: Path) -> None:
        """Log, for each part, where its tensors come from."""
        counts = Counter(name.split(".")[0] for name in self.needed)
        for part, count in counts.items():
            log.info("%s: %d tensors %s", part, count, self.origin[part])
        left = [name for name in self.checkpoint.shapes if name not in self.names]
        for name in left:
            log.info("left out: %s %s", name, self.checkpoint.shapes[name])
        if not has_tokenizer(self.source):
            log.info("%s contains no tokenizer: %s is a model without one", self.source, target)
        types = {self.checkpoint.types[name] for name in self.names}
        if self.others:
            types.add(str(self.checkpoint.dtype).removeprefix("torch."))
        log.info("%s: written in %s", target, " and ".join(sorted(types)))
