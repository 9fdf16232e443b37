"""`make gpu-bench`: how fast LLaVA and LLaVA-Mini answer on the GPU at hand, at the 7B shape with random weights.

It needs torch and transformers only (what transformers brings included), so that it runs on a machine where nothing
else of this project is installed.
"""
