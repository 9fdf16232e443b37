"""Inference: what is stored of images and videos between questions, long contexts, and memory checks before use."""
