"""One file a command: what `llava-mini <command>` does once its config is resolved."""
