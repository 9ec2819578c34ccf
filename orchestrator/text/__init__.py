"""What people read on a terminal: progress, messages, and text made safe to print."""
