"""`python -m incontext`."""

from incontext.cli.main import main

raise SystemExit(main())
