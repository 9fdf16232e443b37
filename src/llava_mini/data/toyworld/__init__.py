"""The toy world, generated locally from a seed: scenes, questions and captions about them, and its own tokenizer.

`make.py` writes it as LLaVA conversations in WebDataset shards, so that everything after it is the real data path.
"""
