"""Images and videos of unknown origin to upright RGB: encoded bytes, files and addresses that a user names, videos."""
