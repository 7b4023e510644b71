"""``python -m pipeline``: the same as the command ``pipeline``."""

import sys

from pipeline.cli.main import main

if __name__ == "__main__":
    sys.argv[0] = "pipeline"  # as it is called again
    main()
