"""Entry point of `python -m llava_mini`, which does what the `llava-mini` command does."""

import sys

from llava_mini.cli import main

sys.exit(main())
