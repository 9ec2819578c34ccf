"""The parent: plans tasks over ranks, starts one process for each, closes the dead, gathers, and
tells people.
"""
