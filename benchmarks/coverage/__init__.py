"""The coverage sweep: every decoder type of transformers, built small, profiled, and redistributed."""
