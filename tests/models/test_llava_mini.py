"""The forward pass: transformers' LLaVA when nothing is compressed, and for a mixed batch what each sample gives alone.

Tolerances: float32 with logits of about one; sums in another order (padding, another batch size, masks instead of none)
differ by up to 1e-5 here, every mistake that was tried by more than 1e-2.
"""

import pytest
import torch
from transformers import SiglipVisionConfig

from llava_mini.errors import UserError
from llava_mini.models.compressors import Compressor
from llava_mini.models.inference_optimizations import InferenceOptimizations

ATOL = 1e-4
FAMILY = pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
COMPRESSOR = pytest.mark.parametrize("compressor", ["query", "avg_pool", "uniform", "none", "zero"])
ORDER = pytest.mark.parametrize("order", ["release", "paper"])
PADDING = pytest.mark.parametrize("padding_side", ["right", "left"])
ATTENTION = pytest.mark.parametrize("attention", ["sdpa", "eager"])


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, atol=ATOL, rtol=0)


@FAMILY
@PADDING
@torch.no_grad()
def test_without_compression_and_fusion_it_is_transformers_llava(
    make_model,
    make_text_config,
    make_sample,
    collate,
    compressors,
    transformers_llava,
    family: str,
    padding_side: str,
) -> None:
    model = make_model(
        text_config=make_text_config(family),
        compressor=compressors["none"],
        num_fusion_layers=0,
        image_token_id=98,  # within the vocabulary: transformers' LLaVA embeds the placeholder before it is replaced
    )
    llava = transformers_llava(model)
    batch = collate(model, [make_sample(1), make_sample(2, frames=0), make_sample(3)], padding_side)
    theirs = {name: tensor for name, tensor in batch.items() if name != "num_frames"}
    theirs["pixel_values"] = batch["pixel_values"][:, 0]
    expected = llava(**theirs)
    output = model(**batch)
    real = batch["attention_mask"].bool()
    close(output.logits[real], expected.logits[real])
    close(output.loss, expected.loss)
    assert expected.logits[real].std() > 0.3  # the comparison has something to compare


@ORDER
@COMPRESSOR
@PADDING
@torch.no_grad()
def test_a_mixed_batch_is_each_sample_alone(
    make_model, make_sample, collate, compressors, orders, order: str, compressor: str, padding_side: str
) -> None:
    model = make_model(compressor=compressors[compressor], **orders[order])
    samples = [make_sample(1), make_sample(2, views=5), make_sample(3, frames=3), make_sample(4, frames=0)]
    for answers in (True, False):
        batch = collate(model, samples, padding_side, answers)
        logits = model(**batch).logits
        for i, sample in enumerate(samples):
            alone = collate(model, [sample], answers=answers)
            close(logits[i, batch["attention_mask"][i].bool()], model(**alone).logits[0])


@FAMILY
@ATTENTION
@torch.no_grad()
def test_a_mixed_batch_in_every_family(
    make_model, make_text_config, make_sample, collate, family: str, attention: str
) -> None:
    model = make_model(text_config=make_text_config(family))
    model.set_attn_implementation(attention)
    samples = [make_sample(1, views=5), make_sample(2, frames=2), make_sample(3, frames=0), make_sample(4)]
    batch = collate(model, samples)
    logits = model(**batch).logits
    for i, sample in enumerate(samples):
        close(logits[i, batch["attention_mask"][i].bool()], model(**collate(model, [sample])).logits[0])


@torch.no_grad()
@pytest.mark.parametrize(("trains", "expected"), [(True, [1 + 5 + 3]), (False, [1 + 3, 5])])
def test_the_vision_tower_runs_once_for_a_kind_of_frames_and_real_views_only(
    make_model, make_sample, collate, trains: bool, expected: list[int]
) -> None:
    model = make_model()
    calls: list[int] = []
    model.vision_tower.register_forward_hook(
        lambda module, args, kwargs, output: calls.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    samples = [make_sample(1), make_sample(2, views=5), make_sample(3, frames=3), make_sample(4, frames=0)]
    model.optimizations = InferenceOptimizations(frame_batch=8)
    with torch.set_grad_enabled(trains):
        model(**collate(model, samples))
    assert calls == expected


@torch.no_grad()
def test_every_frame_and_view_matters_in_its_place(make_model, make_sample, collate) -> None:
    """The equality with samples alone would also hold for a model that ignored its images."""
    model = make_model()
    for sample in (make_sample(1, frames=3), make_sample(2, views=5)):
        batch = collate(model, [sample])
        logits = model(**batch).logits
        swapped = batch["pixel_values"].flip(0 if len(sample.frames) > 1 else 1)
        assert (model(**{**batch, "pixel_values": swapped}).logits - logits).abs().max() > 0.01
        for frame, view in [(f, v) for f in range(len(sample.frames)) for v in range(len(sample.frames[0]))]:
            changed = batch["pixel_values"].clone()
            changed[frame, view] += 1
            assert (model(**{**batch, "pixel_values": changed}).logits - logits).abs().max() > 0.01, (frame, view)


@torch.no_grad()
def test_features_computed_before_are_as_good_as_pixels(make_model, make_sample, collate) -> None:
    model = make_model()
    for samples in ([make_sample(1), make_sample(2, frames=2)], [make_sample(1), make_sample(2, views=5)]):
        batch = collate(model, samples)
        features = model.encode(batch["pixel_values"], batch.get("num_views"))
        expected = model(**batch)
        del batch["pixel_values"]
        assert torch.equal(model(**batch, image_features=features).logits, expected.logits)
        stored = features.half()  # as a feature store keeps them
        assert (model(**batch, image_features=stored).logits - expected.logits).abs().max() < 0.05


@torch.no_grad()
def test_siglip_as_vision_tower(make_model, make_sample, collate) -> None:
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=24, patch_size=6
    )
    model = make_model(vision_config=vision)
    samples = [make_sample(1), make_sample(2, views=5)]
    batch = collate(model, samples)
    logits = model(**batch).logits
    close(logits[0, batch["attention_mask"][0].bool()], model(**collate(model, samples[:1])).logits[0])
    assert (model(**{**batch, "pixel_values": -batch["pixel_values"]}).logits - logits).abs().max() > 0.01


@ATTENTION
@torch.no_grad()
def test_attention_can_be_changed_later(make_config, make_model, make_sample, collate, attention: str) -> None:
    model = make_model(attn_implementation=attention)
    assert model.prefusion.layers[0].self_attn.config._attn_implementation == attention
    batch = collate(model, [make_sample(1), make_sample(2, frames=2)])
    first = model(**batch).logits
    for other in ("sdpa", "eager", "sdpa"):
        model.set_attn_implementation(other)
        assert model.prefusion.layers[0].self_attn.config._attn_implementation == other
        real = batch["attention_mask"].bool()
        close(model(**batch).logits[real], first[real])


@ORDER
@torch.no_grad()
def test_frames_of_a_video_are_fused_on_their_own_and_text_is_their_mean(
    make_model, make_sample, collate, orders, order: str
) -> None:
    model = make_model(**orders[order])
    sample = make_sample(1, frames=3)
    ids = torch.tensor([sample.before + sample.after])
    text, said = model.embed(ids, torch.zeros_like(ids).bool()), torch.ones_like(ids).bool()

    def fuse(frames: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        given = model.frames(torch.stack(frames), None, None)
        return model.fuse_frames(given, text, said, None, torch.tensor([len(frames)]))

    compressed, fused = fuse(list(sample.frames))
    alone = [fuse([frame]) for frame in sample.frames]
    close(compressed, torch.cat([tokens for tokens, _ in alone]))
    close(fused, torch.stack([text for _, text in alone]).mean(0))
    assert (alone[0][1] - alone[1][1]).abs().max() > 0.01


def test_tokens_per_frame(make_model, compressors) -> None:
    counts = {"query": (4, 4), "avg_pool": (4, 4), "uniform": (4, 4), "none": (16, 64), "zero": (0, 0)}
    for name, (whole, hd) in counts.items():
        model = make_model(compressor=compressors[name])
        assert (model.layout.frame(), model.layout.frame(5)) == (whole, hd)


class Doubling(Compressor):
    """A compressor from outside the package."""

    def __init__(self, *, dim: int):
        super().__init__()

    def num_tokens(self, height: int, width: int) -> int:
        return 2

    def forward(self, patches_FPD: torch.Tensor, height: int, width: int) -> torch.Tensor:
        return patches_FPD[:, :1].repeat(1, 2, 1)


@torch.no_grad()
def test_a_compressor_from_elsewhere(make_model, make_sample, collate) -> None:
    model = make_model(compressor={"_target_": f"{__name__}.Doubling"})
    batch = collate(model, [make_sample(1), make_sample(2, views=5)])
    assert torch.isfinite(model(**batch).logits).all()


def test_family_that_does_not_fit(make_model) -> None:
    with pytest.raises(UserError, match="'gpt2'"):
        make_model(text_config={"model_type": "gpt2"})
