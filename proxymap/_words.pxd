# _words - the protocol's words: status, requests, dialects, dictionary flags
#
# Source: Postfix's documented protocol numbers, confirmed on the wire (3.7.11, 3.12).

cdef enum:  # reply status
    STAT_OK = 0      # done; value holds the result
    STAT_NOKEY = 1   # no such key; also: nothing deleted, end of a sequence
    STAT_RETRY = 2   # the table is unavailable for now
    STAT_BAD = 3     # malformed request
    STAT_DENY = 4    # not approved, or a change asked of the read-only service
    STAT_CONFIG = 5  # the table is configured wrongly

cdef enum:  # the five requests
    REQ_UNKNOWN = 0
    REQ_OPEN = 1
    REQ_LOOKUP = 2
    REQ_UPDATE = 3
    REQ_DELETE = 4
    REQ_SEQUENCE = 5

cdef enum:  # sequence function
    FUNC_FIRST = 0
    FUNC_NEXT = 1

cdef enum:  # told apart for each request by the attribute instance_flags
    DIALECT_3_6 = 0   # Postfix up to 3.10
    DIALECT_3_11 = 1  # requests carry instance_flags, replies carry flags

cdef enum:  # dictionary flags; "request" bits may change with each request
    DICT_FLAG_DUP_WARN = 1 << 0       # request
    DICT_FLAG_DUP_IGNORE = 1 << 1     # request
    DICT_FLAG_TRY0NULL = 1 << 2       # instance: keys without trailing NUL
    DICT_FLAG_TRY1NULL = 1 << 3       # instance: keys with trailing NUL
    DICT_FLAG_FIXED = 1 << 4          # implementation: keys are looked up
    DICT_FLAG_PATTERN = 1 << 5        # implementation: keys are matched
    DICT_FLAG_LOCK = 1 << 6           # request
    DICT_FLAG_DUP_REPLACE = 1 << 7    # request
    DICT_FLAG_SYNC_UPDATE = 1 << 8    # request
    DICT_FLAG_NO_REGSUB = 1 << 11     # request
    DICT_FLAG_NO_PROXY = 1 << 12      # request
    DICT_FLAG_NO_UNAUTH = 1 << 13     # request
    DICT_FLAG_FOLD_FIX = 1 << 14      # request: fold the key of a fixed table
    DICT_FLAG_FOLD_MUL = 1 << 15      # request: fold the key of any other table
    DICT_FLAG_OPEN_LOCK = 1 << 16     # instance
    DICT_FLAG_BULK_UPDATE = 1 << 17   # instance: postmap only
    DICT_FLAG_MULTI_WRITER = 1 << 18  # implementation: safe with several writers
    DICT_FLAG_UTF8_REQUEST = 1 << 19  # request: the UTF-8 layer is wanted
    DICT_FLAG_UTF8_ACTIVE = 1 << 20   # instance: the UTF-8 layer is there
    DICT_FLAG_SURROGATE = 1 << 22     # 3.12: the table could not be opened

    DICT_FLAGS_TRY = DICT_FLAG_TRY0NULL | DICT_FLAG_TRY1NULL
    DICT_FLAGS_IMPL = DICT_FLAG_FIXED | DICT_FLAG_PATTERN | DICT_FLAG_MULTI_WRITER
    DICT_FLAGS_REQUEST = (
        DICT_FLAG_DUP_WARN | DICT_FLAG_DUP_IGNORE | DICT_FLAG_LOCK | DICT_FLAG_DUP_REPLACE
        | DICT_FLAG_SYNC_UPDATE | DICT_FLAG_NO_REGSUB | DICT_FLAG_NO_PROXY | DICT_FLAG_NO_UNAUTH
        | DICT_FLAG_FOLD_FIX | DICT_FLAG_FOLD_MUL | DICT_FLAG_UTF8_REQUEST
    )
