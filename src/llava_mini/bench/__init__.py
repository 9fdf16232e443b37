"""Benchmarks: studies of data path, FLOPs, latency, memory and training steps on a CPU or a GPU, one file a study."""
