"""What VAR costs beside the plain model, and beside eager forms of its definition."""
