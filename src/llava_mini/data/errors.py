"""The exception for one unusable sample: the stream counts it, logs it and goes on without it."""


class SampleError(ValueError):
    """A sample that cannot be used; the message is the reason."""
