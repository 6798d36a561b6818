"""`python -m proxymap` is the daemon."""

from proxymap.main import main

raise SystemExit(main())
