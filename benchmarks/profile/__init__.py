"""What profiling costs beside the plain model: time, memory, disk."""
