"""base - SlowTable: what a table type that answers on a worker thread must offer

A `.py` table type subclasses it and has `lookup`; the other operations as far
as the type has them. Called on any of the worker threads, by several at a time
for the same table. Errors: TableRetry, TableConfig (errors.py); whatever else is
raised is logged with its traceback and becomes RETRY.
"""

FIXED, PATTERN = 1 << 4, 1 << 5  # dictionary flags: keys are looked up, or matched
FOLD_FIX, FOLD_MUL = 1 << 14, 1 << 15


class SlowTable:
    """A table whose lookups may take long. Keys and values are bytes without NUL."""

    flags = FIXED  # as an open reply shows them
    fold_bit = FOLD_FIX  # the request flag that has the key folded before lookup sees it

    def lookup(self, key: bytes) -> bytes | None:
        """The value, or None if there is no such key."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of connections and files."""
