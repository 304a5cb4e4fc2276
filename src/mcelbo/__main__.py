"""`python -m mcelbo` is the command line."""

from __future__ import annotations

import sys

from mcelbo.cli import main

sys.exit(main())
