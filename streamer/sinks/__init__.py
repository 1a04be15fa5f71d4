"""Each turns what the daemon knows into somebody's words: a webhook's, Home Assistant's.

They know neither the engine nor each other: `app` hands them what they need, and each does its talking in a thread of
its own, so that nobody waits for it.
"""
