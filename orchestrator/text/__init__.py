"""What people read on a terminal: progress, time left, tables, and text made safe to print."""
