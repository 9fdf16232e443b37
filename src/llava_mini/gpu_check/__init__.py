"""`make gpu-check`: run training steps of real shapes on the available GPU and compare their memory with the plan.

It needs only torch, transformers (with its dependencies), peft and bitsandbytes, so that it runs on a machine where
nothing else of this project is installed. Weights are random: memory and speed do not depend on them.
"""
