"""Thin, typed wrappers over Linux. No policy here, and no imports: the hook passes through."""
