"""How much memory a step takes, found without that memory: the step is run on tensors that hold nothing."""
