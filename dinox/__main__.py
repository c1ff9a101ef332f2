"""python -m dinox"""

import sys

from dinox.cli import main

if __name__ == "__main__":
    sys.exit(main())
