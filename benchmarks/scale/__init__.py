"""What profiling costs as tokens, layers, width and processes grow: measured slopes, and what follows at scale."""
