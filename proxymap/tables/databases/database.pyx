"""database - a table of a database: what becomes of a key, and of the values that are found for it

What all of them share, once: the parts of the key, the reasons not to ask, the
query, and how values are joined. A `question` is one lookup; the functions on it
are C, re-entrant, and may be called by the loop, by a driver and by workers.

A key that need not be asked for is answered on the loop. For all else there is a
driver, whose queue the table's jobs go to; or, without a server, workers, which call
`ask`: then a subclass has `values`. Where the list of domains may take long, workers
ask that first.

Source: mysql_table(5), pgsql_table(5), sqlite_table(5); tables.md 9.
"""

from proxymap.base._buf cimport (
    buf, buf_append, buf_free, buf_init, buf_len, view, view_of, view_str, view_until_nul,
)
from proxymap.base._fold cimport utf8_valid
from proxymap.tables._jobs cimport LEVEL_WARNING, Queue, log_line, queue
from proxymap.tables._table cimport SLOW_LOOKUP, SLOW_SEQUENCE, SLOW_WRITE, STAT_LATER, Table, table
from proxymap.tables._domains cimport domain_find, domains_changed
from proxymap.tables._template cimport (
    PART_DOMAIN, PART_KEY, PART_LABEL, PART_USER, PART_VALUE_DOMAIN, PART_VALUE_USER, WANTS_LABELS,
    parts_of_key, parts_of_value, program_fill, quote_doubling, quote_nothing,
)
from proxymap._words cimport *
from proxymap.config.maincf import ERRORS, TEXT
from proxymap.errors import QuestionRefused, TableRetry
from proxymap.tables.domains import DomainList
from proxymap.tables.template import compile_result

WHY = {
    NO_ADDRESS: "it is no user@domain, and parameter domain is set",
    NO_MATCH: "parameter domain does not match",
    EMPTY: "it is empty",
    NO_DOMAIN: "it has no domain, which a template wants",
    NO_USER: "it has no user, which a template wants",
    FEW_LABELS: "its domain has fewer labels than a template wants",
    NOT_UTF8: "it is not UTF-8",
}


cdef int question_begin(question *q, const database *d, view key, buf *scratch, queue *log) noexcept nogil:
    """STAT_OK: the database is to be asked. STAT_NOKEY, STAT_RETRY: that is the answer, and logged."""
    cdef int why = question_refusal(q, d, key, scratch)
    if why == TROUBLE:
        tell(q, log, b"its list of domains is unavailable, for: ", True, b"")
    elif why == EMPTY:
        tell(q, log, b"empty query string", False, b" -- ignored")
    return STAT_OK if why == ASKED else STAT_RETRY if why == TROUBLE else STAT_NOKEY


cdef int question_refusal(question *q, const database *d, view key, buf *scratch) noexcept nogil:
    """Begin the lookup of key. Returns ASKED, or why the database is not asked."""
    cdef int status
    q.of = d
    q.key = key
    q.labels = parts_of_key(key, q.parts)
    q.rows = q.values = 0
    q.over = False
    q.trouble = NULL
    if d.addresses_only:
        if q.parts[PART_DOMAIN].ptr == key.ptr or not q.parts[PART_USER].len:
            return NO_ADDRESS
        if d.domains != NULL:
            status = domain_find(d.domains, q.parts[PART_DOMAIN], scratch, &q.trouble)
            if status != STAT_OK:
                return NO_MATCH if status == STAT_NOKEY else TROUBLE
    if not key.len:
        return EMPTY
    return missing_part(q)


cdef inline int missing_part(const question *q) noexcept nogil:
    """Is there all that the templates want?"""
    cdef unsigned int wants = q.of.wants
    if not q.parts[PART_DOMAIN].len and wants & (1 << PART_DOMAIN | WANTS_LABELS):
        return NO_DOMAIN
    if not q.parts[PART_USER].len and wants & 1 << PART_USER:
        return NO_USER
    if (wants & WANTS_LABELS) >> (PART_LABEL + q.labels):
        return FEW_LABELS
    if q.of.utf8:
        wants = q.of.query.wants
        if (
            wants & (1 << PART_KEY | WANTS_LABELS) and not utf8_valid(q.key)
            or wants & 1 << PART_USER and not utf8_valid(q.parts[PART_USER])
            or wants & 1 << PART_DOMAIN and not utf8_valid(q.parts[PART_DOMAIN])
        ):
            return NOT_UTF8
    return ASKED


cdef int question_text(question *q, quote_function quote, void *context, buf *out) noexcept nogil:
    """Append the query. STAT_OK; or what quote returned instead, which is the answer then."""
    return program_fill(q.of.query, q.parts, quote, context, out)


cdef void question_row(question *q) noexcept nogil:
    """A row has come; its values follow."""
    q.rows += 1


cdef int question_value(question *q, view value, buf *out, queue *log) noexcept nogil:
    """Add a value to the answer; a NULL (ptr NULL) is none. Of a value counts what is before its first NUL.

    STAT_OK: go on. STAT_RETRY: no more is wanted, for that is the answer: there are too many, or no memory.
    """
    cdef unsigned int wants = q.of.result.wants
    if value.ptr == NULL:
        return STAT_OK
    value = view_until_nul(value)
    if not value.len:
        tell(q, log, b"empty lookup result for: ", True, b" -- ignored")
        return STAT_OK
    parts_of_value(value, q.parts)
    if (
        wants & 1 << PART_VALUE_DOMAIN and not q.parts[PART_VALUE_DOMAIN].len
        or wants & 1 << PART_VALUE_USER and not q.parts[PART_VALUE_USER].len
    ):
        return STAT_OK
    if 0 < q.of.limit and q.values == <size_t> q.of.limit:
        q.over = True
        return STAT_RETRY
    if q.values and buf_append(out, b",", 1) < 0:
        return STAT_RETRY
    q.values += 1
    return program_fill(q.of.result, q.parts, quote_nothing, NULL, out)


cdef int question_end(const question *q, queue *log) noexcept nogil:
    """All that is wanted has come: STAT_OK, STAT_NOKEY if no value is left, STAT_RETRY for too many."""
    if q.over:
        tell(q, log, b"Expansion limit exceeded for key: ", True, b"")
        return STAT_RETRY
    return STAT_OK if q.values else STAT_NOKEY


cdef void tell(
    const question *q, queue *log, const char *text, bint with_key, const char *rest
) noexcept nogil:
    """A warning, perhaps with the key."""
    cdef view quote = view_str(b'"' if with_key else b"")
    cdef view parts[8]
    if log == NULL:
        return
    parts[0], parts[1], parts[2] = view_str(b'table "'), q.of.name, view_str(b'": ')
    parts[3], parts[4], parts[5] = view_str(text), quote, q.key if with_key else quote
    parts[6], parts[7] = quote, view_str(rest)
    log_line(log, LEVEL_WARNING, parts, 8)


cdef int database_lookup(table *t, view key, int *flags, buf *scratch, view *value) noexcept nogil:
    """Refuse what needs no server and no log line; all else takes long."""
    cdef question q
    cdef int why = question_refusal(&q, <const database *> t.self, key, scratch)
    return STAT_LATER if why == ASKED or why == EMPTY or why == TROUBLE else STAT_NOKEY


cdef int database_changed(table *t) noexcept nogil:
    return domains_changed((<const database *> t.self).domains, t)


cdef class DatabaseTable(Table):
    """One table. cf: its parameters. query: its template. utf8: are queries text in UTF-8?

    fixed: does an open reply say that keys are fixed strings, so that clients have them folded?
    result_set_required: is a statement that gives no rows at all an error? quotes: without a driver,
    are quotes in parts of the key doubled? Then a subclass has `values(text)`, too: a context with an
    iterator over what the database finds, a value (bytes or None) for each row.
    """

    def __cinit__(self, bytes type_name, *args, **kwargs):
        self.d.name = view_of(self.type_name, len(self.type_name))
        self.lines = Queue()
        self.t.self = &self.d
        self.t.flags = DICT_FLAG_FIXED
        self.t.fold_bit = DICT_FLAG_FOLD_FIX
        self.t.slow = SLOW_LOOKUP

    def __init__(self, bytes type_name, cf, opening, Program query not None, *, bint utf8=True,
                 bint result_set_required=True, bint quotes=True, bint fixed=True):
        self.warn = opening.host.warn
        self.quote = quote_doubling if quotes else quote_nothing
        if not fixed:
            self.t.flags = self.t.fold_bit = 0
        self.query = query
        self.result = compile_result(cf)
        self.d.query, self.d.result = &self.query.p, &self.result.p
        self.d.wants = self.d.query.wants | self.d.result.wants
        self.d.limit = cf.integer("expansion_limit", 0)
        self.d.utf8 = utf8
        self.d.result_set_required = result_set_required
        self.domains = DomainList.of(cf, opening)
        if self.domains is not None:
            self.d.addresses_only = True
            self.t.incomplete = self.domains.incomplete
            self.quick_domains = self.domains.quick
            if self.quick_domains is not None:
                self.d.domains = &self.quick_domains.l
        self.loaded_from([*cf.files, *opening.files])
        self.t.lookup = database_lookup
        self.t.changed = database_changed

    def serve(self, server):
        """Have a server (pool.Server) answer, unless workers have to ask a list of domains first.

        A server without a driver (crewed) leaves it to workers in any case, and these call `values`.
        """
        self.server = server
        server.attach(self)
        if self.domains is not None and self.quick_domains is None:
            self.t.asks = NULL
            self.crews = None

    def ask(self, bytes key not None, int flags):
        value = self.run(key, None)
        return (STAT_NOKEY, flags, b"") if value is None else (STAT_OK, flags, value)

    def explain(self, bytes key not None) -> list:
        lines = []
        self.run(key, lines)
        return lines

    cdef str refuse(self, question *q, bytes key):
        """Begin the lookup; why the database is not asked, or None. Raises TableRetry if nobody can tell."""
        cdef view asked = view_of(key, len(key))
        cdef buf scratch
        cdef int why
        buf_init(&scratch)
        with nogil:
            why = question_refusal(q, &self.d, asked, &scratch)
        buf_free(&scratch)
        if why == TROUBLE:
            raise self.domains.trouble(None if q.trouble == NULL else <object> q.trouble.owner)
        if why != NO_ADDRESS and self.domains is not None and self.quick_domains is None:
            domain = q.parts[PART_DOMAIN].ptr[:q.parts[PART_DOMAIN].len]
            if domain not in self.domains:
                why = NO_MATCH
        if why == EMPTY:
            tell(q, &self.lines.q, b"empty query string", False, b" -- ignored")
        return WHY.get(why)

    cdef object run(self, bytes key, list lines):
        """The value or None; tells lines how it was found."""
        cdef question q
        try:
            why = self.refuse(&q, key)
            if why is None:
                here = self.d.server == NULL and hasattr(self, "values")
                return self.run_here(&q, lines) if here else self.run_there(key, lines)
            if lines is not None:
                lines.append(f"no query for this key: {why}")
        finally:
            self.tell_lines()

    cdef object run_there(self, bytes key, list lines):
        status, value, told = self.server.ask(self, key, lines is not None)
        if told is not None:
            lines += [self.shown(told["sql"]), f"answered by {told['host']}", f"rows: {told['rows']}"]
        if status == STAT_OK:
            return value
        if status != STAT_NOKEY:
            raise TableRetry("no answer for now")

    cdef object run_here(self, question *q, list lines):
        cdef buf out
        buf_init(&out)
        try:
            text = self.statement(self.filled(q))
            with self.values(text) as values:
                for value in values:
                    question_row(q)
                    if value is not None:
                        self.add(q, value, &out)
            if lines is not None:
                lines += [self.shown(text), f"rows: {q.rows}"]
            return out.data[:buf_len(&out)] if question_end(q, NULL) == STAT_OK else None
        finally:
            buf_free(&out)

    cdef bytes filled(self, question *q):
        """The query of a lookup that has begun."""
        cdef buf text
        buf_init(&text)
        try:
            if question_text(q, self.quote, NULL, &text) != STAT_OK:
                raise MemoryError
            return text.data[:buf_len(&text)]
        finally:
            buf_free(&text)

    def text_for(self, bytes key not None):
        """(what is asked for key, None), or (None, why nothing is). Raises TableRetry if nobody can tell."""
        cdef question q
        why = self.refuse(&q, key)
        return (self.filled(&q), None) if why is None else (None, why)

    def offer(self, bint changes, bint records):
        """Have workers call `write`, for changes, and `sequence` of `answers`, for records."""
        if changes:
            self.t.slow |= SLOW_WRITE
            self.t.flags |= DICT_FLAG_MULTI_WRITER
        if records:
            self.t.slow |= SLOW_SEQUENCE

    def shown(self, bytes text not None) -> str:
        """A query, for the administrator."""
        return text.decode(TEXT, ERRORS)

    def statement(self, bytes text not None) -> bytes:
        """What is asked of the filled query, if the database takes only a part of it."""
        return text

    cdef add(self, question *q, bytes value, buf *out):
        if question_value(q, view_of(value, len(value)), out, &self.lines.q) != STAT_OK:
            if not q.over:
                raise MemoryError
            shown = q.key.ptr[:q.key.len].decode(TEXT, ERRORS)
            raise QuestionRefused(f'Expansion limit exceeded for key: "{shown}"')

    def tell_lines(self):
        """Have what C has to say logged."""
        if self.lines.held:
            for line in self.lines.take_all(self.lines.held):
                self.warn(line.name.decode(TEXT, ERRORS))
