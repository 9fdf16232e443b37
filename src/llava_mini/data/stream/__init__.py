"""From shard sets to batches: position -> sample -> batch -> loader of a rank, resumable at any step."""
