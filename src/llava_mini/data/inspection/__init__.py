"""What a finished shard set contains, and whether it is whole."""
