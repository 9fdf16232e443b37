"""Implementation of `llava-mini <command>` after its config is resolved, one file per command or subcommand.

A command takes its arguments and further folders of configs, and returns its exit status, 0 unless it says otherwise.
"""
