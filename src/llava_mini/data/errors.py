"""The exception for one unusable sample: the stream counts it, logs it and goes on without it."""

from llava_mini.errors import SampleError

__all__ = ["SampleError"]
