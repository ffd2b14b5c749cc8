"""Entry point of a Ray job: takes what `rayapp promote` takes; logs on stderr, at the end one JSON line on stdout.

ray job submit --working-dir . -- python jobs/promote.py --help
"""

import sys

from rayapp.cli import run

if __name__ == "__main__":
    sys.exit(run("promote", sys.argv[1:], prog="jobs/promote.py"))
