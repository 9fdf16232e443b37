"""Compares this project with the official LLaVA-Mini release on recorded cases, which README.md beside it describes.

python tests/golden/check.py [CASE ...]        # every case by default; exit status 0 when all agree, else 1
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

FOLDER = Path(__file__).parent
CASES = sorted(path.stem for path in FOLDER.glob("*.json"))
ATOL = 2e-4  # of logits and loss; eager and fused attention in the release itself differ by up to 1.1e-5
RTOL_GRADIENT = 1e-3  # of a part's gradient norm
NEW_TOKENS = 8
IMAGE_ID = -200  # the release marks an image with it, and splices tokens in at run time
PAD_ID = 0  # the release hides this id from pre-fusion everywhere, a real token or not


def check_case(name: str) -> list[str]:
    """What differs from the recording of a case, a line each; an empty list when everything agrees."""
    spec = json.loads((FOLDER / f"{name}.json").read_text())
    inputs, expected = (load_file(FOLDER / f"{name}.{kind}.safetensors") for kind in ("inputs", "outputs"))
    model = from_official({**spec["llm"], **spec["mini"]}, load_weights(spec["weights"]), spec["clip"])
    model = model.float().eval()
    wrong = check_logits(model, inputs, expected) + check_generation(model, inputs, expected)
    if "grad_norm_by_group" in spec and has_image(inputs).all():
        wrong += check_gradients(model, inputs, spec["grad_norm_by_group"])
    return wrong


def load_weights(groups: list[str]) -> dict[str, Tensor]:
    """The union of the groups' tensors, in float32; large ones are stored as float8, which holds them exactly."""
    state: dict[str, Tensor] = {}
    for group in groups:
        tensors = load_file(FOLDER / "weights" / f"{group}.safetensors")
        state |= {name: tensor.float() for name, tensor in tensors.items()}
    return state


def check_logits(model: Any, inputs: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """Logits at all positions that are no padding, without and with labels, and the loss."""
    wrong = []
    seen = has_image(inputs)
    for view, labels in (("infer", None), ("train", inputs["labels"])):
        with torch.no_grad():
            output = model(**batch_of(model, inputs, labels))
        real = expected[f"{view}.spliced_attention_mask"].bool() & seen[:, None]
        if output.logits.shape[:2] != real.shape:
            wrong.append(f"{view} logits: {tuple(output.logits.shape[:2])} positions, expected {tuple(real.shape)}")
            continue
        wrong += differences(f"{view} logits", output.logits[real], expected[f"{view}.logits"][real])
        if labels is not None and seen.all():
            wrong += differences("loss", output.loss.reshape(1), expected["train.loss"])
    return wrong


def check_generation(model: Any, inputs: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """Greedy tokens after every prompt with an image, a row at a time, without padding."""
    wrong = []
    images = images_of(inputs)
    for row in has_image(inputs).nonzero().flatten().tolist():
        length = int(inputs["prompt_len"][row])
        prompt = {key: inputs[key][row : row + 1, :length] for key in ("input_ids", "attention_mask")}
        own = [images[row]] if isinstance(images, list) else images[row : row + 1]
        ids = model.generate(**batch_of(model, prompt, None, own), do_sample=False, max_new_tokens=NEW_TOKENS)
        got, want = ids[0, -NEW_TOKENS:].tolist(), expected["generate.ids"][row].tolist()
        if got != want:
            wrong.append(f"row {row}: generated {got}, expected {want}")
    return wrong


def check_gradients(model: Any, inputs: dict[str, Tensor], expected: dict[str, float]) -> list[str]:
    """Norm of the gradient of each part that LLaVA-Mini adds to LLaVA or trains."""
    parts: dict[str, nn.Module] = {
        "compressor": model.compressor,
        "mm_projector": model.projector,
        "prefusion_layers": model.prefusion,
    }
    model.requires_grad_(True).zero_grad()
    model(**batch_of(model, inputs, inputs["labels"])).loss.backward()
    wrong = []
    for name, part in parts.items():
        gradients = [p.grad.double().flatten() for p in part.parameters() if p.grad is not None]
        norm = float(torch.cat(gradients).norm()) if gradients else 0.0
        if not abs(norm - expected[name]) <= RTOL_GRADIENT * expected[name]:
            wrong.append(f"gradient of {name}: norm {norm:.5g}, expected {expected[name]:.5g}")
    return wrong


def batch_of(
    model: Any, inputs: dict[str, Tensor], labels: Tensor | None, images: Tensor | list[Tensor] | None = None
) -> dict[str, Tensor]:
    """Keyword arguments for our model from the release's own inputs; `images`: instead of the recorded ones."""
    images = images_of(inputs) if images is None else images
    return official_batch(model, inputs["input_ids"], inputs["attention_mask"], images, labels)


def from_official(config: dict[str, Any], state_dict: dict[str, Tensor], vision_config: dict[str, Any]) -> Any:
    """Our model with the release's weights.

    Args:
        config: Content of the release's config.json: Llama's fields, mm_*, compressor_size, prefusion_layer_num.
        state_dict: Tensors under the release's names, vision tower included.
        vision_config: Vision config of CLIP.
    """
    from transformers import CLIPVisionConfig

    # here, so that `main` can first say which clone they are read from
    from llava_mini.models import LlavaMiniForConditionalGeneration
    from llava_mini.models.interop import official

    model = LlavaMiniForConditionalGeneration(official.our_config(config, CLIPVisionConfig(**vision_config)))
    model.load_state_dict({official.LAYOUT.ours(name): tensor for name, tensor in state_dict.items()})
    return model


def official_batch(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    images: Tensor | list[Tensor],
    labels: Tensor | None = None,
) -> dict[str, Tensor]:
    """The release's inputs as keyword arguments of our model: it has one placeholder for every compressed token.

    Args:
        model: Model that defines how many placeholders a frame takes.
        input_ids: Token ids, [B, T], with -200 at the place of the image.
        attention_mask: Mask of the tokens, [B, T].
        images: Pixels [B, V, 3, H, W] (images), [B, F, V, 3, H, W] (videos), or a list of [V, 3, H, W] and
            [F, V, 3, H, W]. The image of a row without -200 is dropped (the release needs a dummy there).
        labels: Token ids to predict, [B, T].

    Returns:
        input_ids, attention_mask, instruction_mask, pixel_values [F, V, 3, H, W], num_frames, and labels; right-padded.
    """
    frames = [image if image.dim() == 5 else image[None] for image in images]
    rows, kept = [], []
    for i in range(len(input_ids)):
        real = attention_mask[i].bool()
        ids = input_ids[i][real]
        num_images = int((ids == IMAGE_ID).sum())
        if num_images > 1:
            raise ValueError(f"input_ids: row {i} has {num_images} images, the release's inputs contain at most 1")
        kept.append(frames[i][: num_images * len(frames[i])])
        repeat = len(kept[-1]) * model.layout.frame(frames[i].shape[1])
        times = torch.where(ids == IMAGE_ID, repeat, 1)
        row = {"input_ids": ids.masked_fill(ids == IMAGE_ID, model.config.image_token_id)}
        row["attention_mask"] = torch.ones_like(ids)
        row["instruction_mask"] = ids != PAD_ID
        if labels is not None:
            row["labels"] = labels[i][real].masked_fill(ids == IMAGE_ID, -100)
            row["instruction_mask"] &= row["labels"] == -100
        rows.append({name: tensor.repeat_interleave(times) for name, tensor in row.items()})
    fill = {"input_ids": 0, "attention_mask": 0, "instruction_mask": False, "labels": -100}
    batch = {
        name: torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True, padding_value=fill[name])
        for name in rows[0]
    }
    num_frames = torch.tensor([len(frame) for frame in kept])
    return {**batch, "pixel_values": torch.cat(kept), "num_frames": num_frames}


def images_of(inputs: dict[str, Tensor]) -> Tensor | list[Tensor]:
    """What the release was given as images: a tensor, or a list of tensors, one for each row."""
    if "pixel_values" in inputs:
        return inputs["pixel_values"]
    return [inputs[f"pixel_values.{row}"] for row in range(len(inputs["input_ids"]))]


def has_image(inputs: dict[str, Tensor]) -> Tensor:
    """[B] bool. A row of text alone reads an image of zeros in the release, which is not compared."""
    return (inputs["input_ids"] == IMAGE_ID).any(dim=1)


def differences(what: str, got: Tensor, want: Tensor) -> list[str]:
    """A line when two tensors differ in shape or by more than `ATOL` anywhere; NaN differs from everything."""
    if got.shape != want.shape:
        return [f"{what}: shape {tuple(got.shape)}, expected {tuple(want.shape)}"]
    error = float((got.double() - want.double()).abs().max())
    return [] if error <= ATOL else [f"{what}: off by {error:.3g} (allowed {ATOL:.1g})"]


def case(name: str) -> str:
    """The name itself; refuses one that no recording has."""
    if name not in CASES:
        raise argparse.ArgumentTypeError(f"{name}: allowed are {', '.join(CASES)}")
    return name


def main() -> int:
    """Checks the cases that the command line names, and prints a line for each."""
    parser = argparse.ArgumentParser(description="Compares this project with the official release on recorded cases.")
    parser.add_argument("cases", nargs="*", type=case, metavar="CASE", help=f"any of {', '.join(CASES)}")
    names = parser.parse_args().cases or CASES
    sys.path.insert(0, str(FOLDER.parents[1] / "src"))  # the code beside these recordings, whatever is installed
    failed = 0
    for name in names:
        wrong = check_case(name)
        failed += bool(wrong)
        print(f"{name}: {'; '.join(wrong) or 'agrees'}")
    print(f"{len(names) - failed} of {len(names)} cases agree")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
