"""The tests, by level: pure, filesystem, runtime, engine."""
