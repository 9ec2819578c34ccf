"""What several hosts see of one folder, found out by copies of `gpuspool doctor` that run there.

meeting    the copies find each other through the folder
signs      what one copy changes step by step, and how another one sees it
lags       how late each sign is seen
contest    links that all make at once, and a lock that one holds
verdict    what all of that means for a spool
together   the parts in order: the one function that is called from outside
"""
