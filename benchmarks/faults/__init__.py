"""What goes wrong on real machines, done on purpose: a run is killed, starved, damaged and fed with nonsense."""
