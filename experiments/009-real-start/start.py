"""What a real language model still says before any training, by how pre-fusion starts: loss and greedy answer.

    python experiments/009-real-start/start.py real    # the folder that fetch.py wrote

Vision tower, projector and compressor say nothing useful yet: an image of noise comes first, the question after it.
Prints the table of README.md.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from llava_mini import assembly
from llava_mini.config import resolve

ASKED = (
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Count from one to five.", "one two three four five"),
)
STARTS = {
    "`none`, N_fusion=0": ["compressor=none", "fusion.num_layers=0"],
    "query C=1, N_fusion=4, `identity`": ["fusion.init=identity"],
    "query C=1, N_fusion=4, `copy`": ["fusion.init=copy"],
    "query C=1, N_fusion=4, `random`": ["fusion.init=random"],
}


@torch.no_grad()
def row(folder: Path, name: str, overrides: list[str]) -> str:
    parts = [f"model.vision_tower={folder / 'vision_tower'}", f"model.language_model={folder / 'language_model'}"]
    config = resolve(["model=parts", *parts, "model.vision_feature_layer=-1", *overrides])
    assembly.seed_run(config)
    tokenizer, model = assembly.build_base(config)
    processor = assembly.build_processor(config, model, tokenizer)
    model.eval()
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    cells = []
    for question, answer in ASKED:
        asked = {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}
        answered = {"role": "assistant", "content": answer}
        options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
        prompt = processor.apply_chat_template([asked], add_generation_prompt=True, **options)
        whole = processor.apply_chat_template([asked, answered], **options)
        labels = whole["input_ids"].clone()
        labels[:, : prompt["input_ids"].shape[1]] = -100
        end = int((labels == tokenizer.eos_token_id).nonzero()[-1, 1])
        labels[:, end + 1 :] = -100  # the new line after the end token
        loss = float(model(**whole, labels=labels).loss)
        ids = model.generate(**prompt, do_sample=False, max_new_tokens=16)
        text = tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
        cells += [f"{loss:.2f}", f"`{' '.join(text.split())}`"]
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    torch.set_num_threads(1)
    heads = "".join(f' loss of "{answer}" | greedy answer |' for _, answer in ASKED)
    lines = [f"| start |{heads}", "|---" * (1 + 2 * len(ASKED)) + "|"]
    lines += [row(Path(sys.argv[1]), name, overrides) for name, overrides in STARTS.items()]
    print("\n".join(lines))
