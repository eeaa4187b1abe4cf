"""Which containers there are: their records, who belongs to which, and their ranges of ids."""
