"""Planning of the memory that a step takes, without using that memory: the step runs on fake tensors."""
