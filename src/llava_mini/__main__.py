"""`python -m llava_mini`: the same as `llava-mini`."""

import sys

from llava_mini.cli import main

sys.exit(main())
