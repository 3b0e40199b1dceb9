"""`python -m harness` is the same command as `evenbench`."""

from __future__ import annotations

import sys

from harness.shell.cli import main

sys.exit(main())
