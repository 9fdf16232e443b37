"""Training from a config to result.json: assembled, trained, measured, saved; and the toy world's checkpoints."""
