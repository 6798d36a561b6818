"""flags - the dictionary flags that Python code deals with

Source: _words.pxd, which has all of them; tests/test_words.py compares the two.
"""

TRY0NULL, TRY1NULL = 1 << 2, 1 << 3  # keys without a trailing NUL, keys with one
FIXED, PATTERN = 1 << 4, 1 << 5  # keys are looked up, or matched
DUP_WARN, DUP_IGNORE, DUP_REPLACE = 1 << 0, 1 << 1, 1 << 7
LOCK = 1 << 6  # locks are taken for each operation
NO_REGSUB = 1 << 11  # rules with $number are refused
FOLD_FIX, FOLD_MUL = 1 << 14, 1 << 15
UTF8_REQUEST, UTF8_ACTIVE = 1 << 19, 1 << 20
RHS_IS_FILE = 1 << 21  # values are names of files whose content is wanted, in base64
ALL_FLAGS = -1
