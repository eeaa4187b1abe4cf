"""How ``sysfsd-hook`` and ``sysfsd-runc`` start."""

from __future__ import annotations

import os

START = os.path.join(os.path.dirname(__file__), "_start.py")
"""The file that starts any of our programs without ``site``; see there."""
