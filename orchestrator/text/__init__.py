"""Words and progress for people."""
