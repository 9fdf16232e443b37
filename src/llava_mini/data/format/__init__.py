"""The format of shard sets: tar files with an index, written, opened and read, here or at a URL."""
