"""`make gpu-check`: training steps of real shapes on the GPU at hand, and their memory against what was planned.

It needs torch, transformers, peft and bitsandbytes only (what transformers brings included), so that it runs on a
machine where nothing else of this project is installed. Weights are random: memory and speed do not depend on them.
"""
