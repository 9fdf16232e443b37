"""Features of the frozen vision tower, computed once and stored as shards."""
