"""Benchmarks of this package against common alternatives: data path, latency, training steps, memory and FLOPs."""
