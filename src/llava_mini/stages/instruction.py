"""Stage 2, instruction tuning: all parts except the vision tower train (paper section 4.3, Table 9)."""

from llava_mini.stages.base import VLMStage


class InstructionStage(VLMStage):
    """Stage 2, which trains projector, compressor, pre-fusion and language model."""

    @property
    def trainable_parts(self) -> tuple[str, ...]:
        return ("projector", "compressor", "prefusion", "language_model")
