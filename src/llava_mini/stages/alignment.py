"""Stage 1, alignment: plain LLaVA on captions; only the projector trains (paper section 4.3, Table 9).

The model is built with compressor `none` and N_fusion 0, so that neither takes part. In the toy world, where no
language model is pre-trained, the language model gets a learning rate too.
"""

from llava_mini.errors import refused
from llava_mini.models.compressors.none import NoCompressor
from llava_mini.stages.base import VLMStage


class AlignmentStage(VLMStage):
    """Stage 1, which trains the projector, and the language model if it has a learning rate.

    Raises:
        UserError: for a model with compression or pre-fusion, whose untrained parts would interfere.
    """

    def check(self) -> None:
        super().check()
        if self.model.config.num_fusion_layers or not isinstance(self.model.compressor, NoCompressor):
            allowed = "compressor=none and fusion.num_layers=0"
            raise refused("stage", 1, given="stage 1 is plain LLaVA", allowed=allowed)

    @property
    def trainable_parts(self) -> tuple[str, ...]:
        return ("projector", "language_model")
