"""Images and conversations, from shards to batches; independent of any model."""
