"""What commands share: their table, parsers of flags, the flags of those that answer questions, and output."""
