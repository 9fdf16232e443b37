"""Packed: the chosen entries of sequences, and that pre-fusion pays for the instruction alone."""

import torch

from llava_mini.models.fused_frames import Packed
from llava_mini.models.inference_optimizations import InferenceOptimizations


def test_the_example_of_the_docstring() -> None:
    chosen = torch.tensor([[0, 1, 0, 1, 1, 0], [1, 0, 0, 0, 0, 1]]).bool()
    packed = Packed.of(chosen)
    assert packed.mask_BS.tolist() == [[True, True, True], [True, True, False]]
    letters = torch.arange(6).expand(2, -1)
    taken = packed.take(letters)
    assert taken[0].tolist() == [1, 3, 4]
    assert taken[1, :2].tolist() == [0, 5]
    vectors = packed.take(letters[..., None].expand(-1, -1, 2))
    assert vectors.shape == (2, 3, 2)
    assert torch.equal(vectors[..., 0], taken)


def test_nothing_is_chosen() -> None:
    packed = Packed.of(torch.zeros(2, 5).bool())
    assert packed.mask_BS.shape == (2, 0)
    assert packed.take(torch.zeros(2, 5, 3)).shape == (2, 0, 3)
    assert Packed.of(torch.zeros(0, 5).bool()).mask_BS.shape == (0, 0)


@torch.no_grad()
def test_prefusion_gets_neither_answers_nor_placeholders_nor_padding(make_model, make_sample, collate) -> None:
    model = make_model()
    batch = collate(model, [make_sample(1), make_sample(2, frames=2)])
    lengths = []
    see = model.prefusion.prefill_visual

    def counted(seen, *rest):
        lengths.append(seen.shape[1])
        return see(seen, *rest)

    model.prefusion.prefill_visual = counted
    model.optimizations = InferenceOptimizations(frame_batch=8)
    said = batch["attention_mask"].bool() & (batch["input_ids"] != model.config.image_token_id)
    said[:, -2:] = False
    model(**{**batch, "instruction_mask": said})
    patches, tokens = model.side**2, model.layout.frame()
    assert lengths == [patches + tokens * model.config.fuse_compressed_tokens + int(said.sum(1).max())]
    assert lengths[0] < patches + batch["input_ids"].shape[1]
