"""Stage 1, alignment: plain LLaVA on captions, only the projector trains (paper section 4.3, Table 9).

Its model is built with compressor `none` and N_fusion 0, so that neither takes part. In the tiny world, where no
language model is pre-trained, the language model gets a learning rate too.
"""

from llava_mini.stages.base import VLMStage


class AlignmentStage(VLMStage):
    """Stage 1: the projector, and the language model where it has a learning rate."""

    @property
    def trainable_parts(self) -> tuple[str, ...]:
        return ("projector", "language_model")
