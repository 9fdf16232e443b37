"""LLaVA-Mini in plain torch and transformers, from pixels to answer; registered with transformers' Auto classes."""

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from llava_mini.models.configuration import LlavaMiniConfig
from llava_mini.models.llava_mini import LlavaMiniForConditionalGeneration
from llava_mini.models.processor import LlavaMiniProcessor

AutoConfig.register("llava_mini", LlavaMiniConfig, exist_ok=True)
AutoModelForImageTextToText.register(LlavaMiniConfig, LlavaMiniForConditionalGeneration, exist_ok=True)
AutoProcessor.register(LlavaMiniConfig, LlavaMiniProcessor, exist_ok=True)

__all__ = ["LlavaMiniConfig", "LlavaMiniForConditionalGeneration", "LlavaMiniProcessor"]
