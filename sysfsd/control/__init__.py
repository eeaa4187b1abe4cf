"""The control socket: what is said on it, who serves it, and who asks."""
