"""Models: loading them, finding their parts by structure, and seeing their hidden states and attention."""
