"""Read images and videos of unknown origin as upright RGB: encoded bytes, files and URLs that a user names, videos."""
