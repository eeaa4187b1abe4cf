"""How ``sysfsd-hook`` and ``sysfsd-runc`` start."""
