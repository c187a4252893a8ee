# SPDX-License-Identifier: Apache-2.0
"""`python -m dataplane` is `overlayd`."""

import sys

from dataplane.cli import main

sys.exit(main())
