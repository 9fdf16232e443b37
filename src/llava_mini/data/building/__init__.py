"""Build a shard set from LLaVA JSON and folders of images and videos: `plan.py` makes the plan, `run.py` executes it.

records ─ plan (shuffled, frozen) ─┬─ media ─ shard 0 ─┐
                                   ├─ media ─ shard 1 ─┼─ complete set
                                   └─ ...              ┘
"""
