"""How fast a step is, and against what."""
