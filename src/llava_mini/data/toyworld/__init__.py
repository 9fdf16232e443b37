"""The world that is made locally from a seed: scenes, what is asked and said about them, and their own tokenizer.

`make.py` writes it as LLaVA conversations in WebDataset shards, so that everything after it is the real data path.
"""
