"""From LLaVA JSON and folders of images and videos to a shard set: `plan.py` says what goes where, `run.py` does it.

records ─ plan (shuffled, frozen) ─┬─ shard_task ─ media ─ shard 0 ─┐
                                   ├─ shard_task ─ media ─ shard 1 ─┼─ complete set
                                   └─ ...                           ┘
"""
