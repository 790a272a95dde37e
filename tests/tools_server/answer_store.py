"""The file of answers as a cache reads it."""


def taken(store, key):
    """The value of a key, whose use is noted; None if there is none, or it is too old."""
    entry = store.entry(key)
    if entry is not None and store.worth_noting(entry):
        store.touch(key)
    return None if entry is None else entry.value
