# database - what a table of a database is to the loop and to a driver (see database.pyx)

from proxymap.base._buf cimport buf, view
from proxymap.tables._jobs cimport Queue, queue
from proxymap.tables._table cimport Table, table
from proxymap.tables._domains cimport Domains, domain_list
from proxymap.tables._template cimport PARTS, Program, program, quote_function


cdef enum:  # why the database is not asked for a key
    ASKED = 0
    NO_ADDRESS = 1   # parameter domain is set, and it is no user@domain
    NO_MATCH = 2     # parameter domain does not match
    EMPTY = 3
    NO_DOMAIN = 4    # which a template wants
    NO_USER = 5      # the same
    FEW_LABELS = 6   # fewer than a template wants
    NOT_UTF8 = 7     # a part that the query wants
    TROUBLE = 8      # the list of domains cannot tell


cdef struct database:
    # A table; of a job: <database *> j.t.self
    view name                  # such as b"mysql:/etc/postfix/a.cf", for log lines
    void *server               # whatever answers its queries; the driver's own
    const program *query
    const program *result      # result_format
    unsigned int wants         # of query and result: bit 1 << PART_*
    int limit                  # expansion_limit; 0 or less: none
    bint utf8                  # queries are UTF-8
    bint addresses_only        # parameter domain is set
    const domain_list *domains  # NULL: none, or Table.ask asks it, for it may take long
    bint result_set_required   # require_result_set
    const void *form           # what a query is made of besides; the library's own, or NULL


cdef struct question:
    # One lookup. Borrows the key.
    const database *of
    view key
    view parts[PARTS]
    int labels             # how many PART_LABEL there are
    table *trouble         # a table of the list of domains that does not answer
    size_t rows            # of the result
    size_t values          # in the answer
    bint over              # there are more of them than expansion_limit


cdef int question_begin(question *q, const database *d, view key, buf *scratch, queue *log) noexcept nogil
cdef int question_refusal(question *q, const database *d, view key, buf *scratch) noexcept nogil
cdef int question_text(question *q, quote_function quote, void *context, buf *out) noexcept nogil
cdef void question_row(question *q) noexcept nogil
cdef int question_value(question *q, view value, buf *out, queue *log) noexcept nogil
cdef int question_end(const question *q, queue *log) noexcept nogil


cdef class DatabaseTable(Table):
    cdef database d
    cdef readonly Program query
    cdef readonly Program result
    cdef readonly object domains  # DomainList, or None
    cdef Domains quick_domains    # what d.domains points to
    cdef object warn
    cdef Queue lines              # for the log, from C
    cdef public object server     # of which `servers` tells; None: there is none
    cdef quote_function quote     # of what workers ask

    cdef str refuse(self, question *q, bytes key)
    cdef object run(self, bytes key, list lines)
    cdef object run_here(self, question *q, list lines)
    cdef object run_there(self, bytes key, list lines)
    cdef bytes filled(self, question *q)
    cdef add(self, question *q, bytes value, buf *out)
