"""10,000 frames on a CPU: they are read as a stream, and memory is bounded by what is kept of each."""

from __future__ import annotations

import subprocess
import sys

# In a process of its own, whose memory is that of nothing else. It prints frames, answers, and MiB it grew by.
_LOOKS = """
import resource
import sys
import numpy as np
import torch
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig
from llava_mini.data.text.templates import TINY
from llava_mini.data.toyworld.tokenizer import build_tokenizer
from llava_mini.inference.frame_cache import FrameCacheConfig
from llava_mini.inference.long_context import extend_context
from llava_mini.inference.session import Session
from llava_mini.models import LlavaMiniConfig, LlavaMiniForConditionalGeneration, LlavaMiniProcessor

torch.set_num_threads(1)
torch.manual_seed(0)
tokenizer = build_tokenizer()
model = LlavaMiniForConditionalGeneration(LlavaMiniConfig(
    vision_config=CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8,
    ),
    text_config=LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=len(tokenizer), max_position_embeddings=4096,
    ),
    num_fusion_layers=2, image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
)).eval()
images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)
processor = LlavaMiniProcessor(images, tokenizer, chat_template=TINY.chat_template())
extend_context(model, 20_000)
session = Session(model, processor, keep=FrameCacheConfig(kv_budget=0), kv_bits=8, frame_batch=64)
random = np.random.default_rng(0)
session.add_media(random.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(64))
session.ask("how many circle objects", max_new_tokens=2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
session.add_media(random.integers(0, 256, (32, 32, 3), dtype=np.uint8) for _ in range(10_000))
for question in ("how many circle objects", "what color is the square"):
    session.ask(question, max_new_tokens=2)
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
print(len(session.store), sum(session.store.held_bytes().values()) // 1024, session.cache.held_bytes // 1024, grown)
"""


def test_ten_thousand_frames_in_bounded_memory() -> None:
    said = subprocess.run([sys.executable, "-c", _LOOKS], capture_output=True, text=True, check=True, timeout=300)
    frames, kept_kib, cache_kib, grown_mib = map(int, said.stdout.split())
    assert frames == 10_064
    assert kept_kib == 10_064 * (16 * 16 + 32) * 4 // 1024  # features of 16 patches and one token, float32
    assert cache_kib < 10_064 * 2 * 2 * 2 * (8 + 4) * 1.13 / 1024 + 64
    assert grown_mib < 100, "pixels of all frames alone would take 117 MiB"
