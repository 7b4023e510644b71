"""What must run, running it once, and losing nothing: the engine."""
