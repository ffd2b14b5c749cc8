"""`python -m rayapp` is `rayapp`."""

import sys

from rayapp.cli import main

sys.exit(main())
