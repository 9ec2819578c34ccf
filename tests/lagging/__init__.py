"""Mounts that see a folder late: each is to it as a client of a network file system is to a server.

`lagging.c` is the file system, `clients` compiles and mounts it.
"""
