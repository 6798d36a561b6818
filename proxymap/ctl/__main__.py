import sys

from proxymap.ctl.main import main

if __name__ == "__main__":
    sys.exit(main())
