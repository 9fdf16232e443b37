"""Images and conversations, from shards to batches; it knows nothing of models."""
