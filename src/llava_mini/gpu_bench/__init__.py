"""`make gpu-bench`: measure how fast LLaVA and LLaVA-Mini answer on the available GPU, 7B shape, random weights.

It needs only torch and transformers (with its dependencies), so that it runs on a machine where nothing else of this
project is installed.
"""
