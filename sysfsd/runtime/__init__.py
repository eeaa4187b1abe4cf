"""``sysfsd-runc``: an OCI runtime that makes system containers and lets runc or crun run them."""
