"""Implementation of `llava-mini <command>` after its config is resolved, one file per command."""
