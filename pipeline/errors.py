"""What the engine raises. A user's mistake is a ValueError whose message says the fix."""


class Interrupted(Exception):
    """Somebody asked to stop (Ctrl-C, SIGTERM): all is saved, and the same command goes on."""


class Lost(Exception):
    """Another process has taken this work over: stop, and write nothing more."""


class StoreError(ValueError):
    """The store cannot do what it must: full, read-only, refused, or damaged; a person must act."""


class Damaged(StoreError):
    """Bytes are missing, or are not those that were stored: they must be made again."""


class StoreAway(StoreError):
    """The store cannot be reached now; the same call may succeed later."""
