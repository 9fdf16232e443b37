"""Static shapes: the same words with transformers' static cache, and a decoding step is one graph for torch.compile."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import CompileConfig

Factory = Callable[..., Any]
LENGTH = 6


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_the_same_words(
    make_model: Factory, make_text_config: Factory, make_sample: Factory, collate: Factory, family: str
) -> None:
    """For one image, and for a padded batch of an image, an HD image, a video and text."""
    model = make_model(text_config=make_text_config(family))
    samples = [make_sample(1), make_sample(2, views=5), make_sample(3, frames=3), make_sample(4, frames=0)]
    for chosen in (samples[:1], samples):
        batch = collate(model, chosen, padding_side="left", answers=False)
        options = {"do_sample": False, "max_new_tokens": LENGTH}
        expected = model.generate(**batch, **options)
        assert torch.equal(model.generate(**batch, cache_implementation="static", **options), expected)


@pytest.mark.parametrize("frames", [0, 1])
def test_a_compiled_model_gives_what_the_model_gives(
    make_model: Factory, make_sample: Factory, collate: Factory, frames: int
) -> None:
    model = make_model()
    batch = collate(model, [make_sample(1, frames=frames), make_sample(2, frames=frames, answer=5)])
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        expected, found = model(**batch), compiled(**batch)
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=0)
    assert torch.equal(found.loss, expected.loss)


def test_decoding_is_one_graph(make_model: Factory, make_sample: Factory, collate: Factory) -> None:
    """The whole model is captured once and serves every step; a graph break would be an error."""
    model = make_model()
    batch = collate(model, [make_sample(1, frames=2)], answers=False)
    options = {"do_sample": False, "max_new_tokens": LENGTH}
    expected = model.generate(**batch, **options)
    graphs: list[Any] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compile_config = CompileConfig(fullgraph=True, backend=backend, mode=None)
    compile_config._compile_all_devices = True
    torch._dynamo.reset()
    found = model.generate(**batch, cache_implementation="static", compile_config=compile_config, **options)
    assert torch.equal(found, expected)
    assert len(graphs) == 1
