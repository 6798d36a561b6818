"""cidr - rules that match IP addresses by network block

A rule file is read once, and turned into what it says of each address: sorted
intervals without gaps, per family, each with the first rule that matches there.
A lookup finds its interval by bisection, without the GIL; how many rules there
are, and how `if` nests them, does not matter then.

Source: cidr_table(5); tables.md 6; the warnings as Postfix 3.7 words them.
"""

import re
from array import array

from libc.stdint cimport int32_t, uint32_t
from libc.stdlib cimport calloc, free

from proxymap._buf cimport buf, memcmp, view, view_of
from proxymap._stamp cimport stamp, stamp_differs
from proxymap._table cimport CHANGED_NOT, CHANGED_REPLACED, Table, table
from proxymap._words cimport *

from proxymap.rules import Rules, split_word
from proxymap.source import BLANKS

cdef extern from "<arpa/inet.h>" nogil:
    enum: AF_INET
    enum: AF_INET6
    enum: INET6_ADDRSTRLEN
    int inet_pton(int family, const char *text, void *address)
    const char *inet_ntop(int family, const void *address, char *text, uint32_t size)

split_rule = re.compile(rb"([!\s]*\S*)\s*(.*)", re.DOTALL).fullmatch  # pattern, value

cdef enum:
    WIDTH4 = 4    # bytes of an address, in network order
    WIDTH6 = 16
    WIDTH_MAX = 16


cdef struct rule:
    view pattern
    view value
    size_t line


cdef struct intervals:
    # All addresses of one family: interval n begins at starts[n * width] and ends before the next one.
    const unsigned char *starts  # ascending; the first is all zeros
    const uint32_t *winners      # which rule answers there; as many as there are rules: none
    size_t count
    size_t width


cdef struct cidr:
    intervals v4
    intervals v6
    rule *rules
    uint32_t count
    stamp read
    const char *path


cdef size_t address_parse(view text, unsigned char *address) noexcept nogil:
    """Text to an address in network order; returns its width, or 0 if it is none."""
    cdef char terminated[INET6_ADDRSTRLEN]
    cdef bint colon = False
    cdef size_t i
    if text.len >= sizeof(terminated):
        return 0
    for i in range(text.len):
        if text.ptr[i] == 0:
            return 0
        colon |= text.ptr[i] == c":"
        terminated[i] = text.ptr[i]
    terminated[text.len] = 0
    if colon:
        return WIDTH6 if inet_pton(AF_INET6, terminated, address) == 1 else 0
    return WIDTH4 if inet_pton(AF_INET, terminated, address) == 1 else 0


cdef uint32_t winner_at(const intervals *all, const unsigned char *address) noexcept nogil:
    cdef size_t low = 0, high = all.count, middle
    while high - low > 1:
        middle = low + (high - low) // 2
        if memcmp(all.starts + middle * all.width, address, all.width) <= 0:
            low = middle
        else:
            high = middle
    return all.winners[low]


cdef const rule *rule_of(const cidr *c, view key) noexcept nogil:
    """The rule that answers to a key, or NULL."""
    cdef unsigned char address[WIDTH_MAX]
    cdef size_t width = address_parse(key, address)
    cdef uint32_t winner
    if width == 0:
        return NULL
    winner = winner_at(&c.v4 if width == WIDTH4 else &c.v6, address)
    return NULL if winner == c.count else &c.rules[winner]


cdef int cidr_lookup(table *t, view key, int *flags, buf *scratch, view *value) noexcept nogil:
    cdef const rule *r = rule_of(<const cidr *> t.self, key)
    if r == NULL:
        return STAT_NOKEY
    value[0] = r.value
    return STAT_OK


cdef int cidr_changed(table *t) noexcept nogil:
    cdef const cidr *c = <const cidr *> t.self
    return CHANGED_REPLACED if stamp_differs(&c.read, c.path) else CHANGED_NOT


cdef class Counts:
    """For each rule, how many of its conditions are false: its own pattern, and each `if` around it.

    A tree over the rules: a node knows the smallest count below it, so that adding
    to a range of rules and finding the first rule with none both take log(rules).
    """

    cdef int32_t *least   # in node n, whose children are 2n and 2n + 1: the smallest count, without what
    cdef int32_t *added   # was added to nodes above; and what was added to all of the node
    cdef uint32_t leaves  # a power of two, more than there are rules
    cdef uint32_t count

    def __cinit__(self, uint32_t count):
        self.count = count
        self.leaves = 1
        while self.leaves <= count:
            self.leaves *= 2
        self.least = <int32_t *> calloc(2 * <size_t> self.leaves, sizeof(int32_t))
        self.added = <int32_t *> calloc(2 * <size_t> self.leaves, sizeof(int32_t))
        if self.least == NULL or self.added == NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self.least)
        free(self.added)

    cdef void add(self, uint32_t begin, uint32_t end, int32_t n) noexcept nogil:
        """Add n to the rules from begin to before end."""
        cdef uint32_t low = begin + self.leaves, high = end + self.leaves
        if begin == end:
            return
        while low < high:
            if low & 1:
                self.add_to_node(low, n)
                low += 1
            if high & 1:
                high -= 1
                self.add_to_node(high, n)
            low //= 2
            high //= 2
        self.refresh_above(begin + self.leaves)
        self.refresh_above(end - 1 + self.leaves)

    cdef inline void add_to_node(self, uint32_t node, int32_t n) noexcept nogil:
        self.least[node] += n
        self.added[node] += n

    cdef inline void refresh_above(self, uint32_t node) noexcept nogil:
        while node > 1:
            node //= 2
            self.least[node] = min(self.least[2 * node], self.least[2 * node + 1]) + self.added[node]

    cdef uint32_t first_zero(self) noexcept nogil:
        """The first rule that has no false condition; or the number of rules."""
        cdef uint32_t node = 1
        cdef int32_t wanted = 0
        while node < self.leaves:  # leaves behind the last rule are always zero
            wanted -= self.added[node]
            node *= 2
            node += self.least[node] != wanted
        return min(node - self.leaves, self.count)


def flatten(list conditions, uint32_t count, int width) -> tuple:
    """Conditions to intervals of one family: (starts, winners).

    Walks through all addresses at which a condition becomes true or false. A
    condition is (width, first address, address behind the last, negated, first
    rule that depends on it, rule behind the last).
    """
    cdef Counts counts = Counts(count)
    cdef uint32_t winner, latest = 0, begin, end
    cdef int32_t change
    cdef list changes = []
    limit = 256**16 if width == WIDTH6 else 256**4
    for of, first, behind, negated, begin, end in conditions:
        if of != width or not negated:
            counts.add(begin, end, 1)
        if of == width:
            change = 1 if negated else -1
            changes.append((first, begin, end, change))
            if behind != limit:
                changes.append((behind, begin, end, -change))
    changes.sort()
    changes.append((limit, 0, 0, 0))
    starts, winners = bytearray(), array("I")
    here = 0
    for address, begin, end, change in changes:
        if address != here:
            winner = counts.first_zero()
            if not winners or winner != latest:
                starts += here.to_bytes(width, "big")
                winners.append(winner)
                latest = winner
            here = address
        counts.add(begin, end, change)
    return bytes(starts), winners.tobytes()


def parse_condition(bytes text) -> tuple:
    """`[!]address[/length]` to the first four items of a condition; raises ValueError in Postfix's words."""
    bare = text.lstrip(b"!" + BLANKS)
    negated = text.count(b"!", 0, len(text) - len(bare)) % 2 == 1
    if not bare:
        raise ValueError("no address pattern")
    if bare.startswith(b"["):
        inside, bracket, rest = bare[1:].partition(b"]")
        if not bracket:
            raise ValueError(f"missing ']' character after \"{shown(bare)}\"")
        if rest and not rest.startswith(b"/"):
            raise ValueError(f"garbage after \"[{shown(inside)}]\"")
        bare = inside + rest
    return *parse_block(bare), negated


def parse_block(bytes text) -> tuple:
    """`address[/length]` to (width, first address, address behind the last)."""
    cdef unsigned char address[WIDTH_MAX]
    cdef char network[INET6_ADDRSTRLEN]
    cdef size_t width
    cdef bytes packed
    name, slash, digits = text.partition(b"/")
    bits = 8 * (WIDTH6 if b":" in name else WIDTH4)
    length = bits
    if slash:
        if not digits.isdigit():
            raise ValueError(f'bad mask value in "{shown(text)}"')
        digits = digits.lstrip(b"0") or b"0"
        length = int(digits[:4])
        if length > bits:
            raise ValueError(f'bad mask length in "{shown(text)}"')
    width = address_parse(view_of(name, len(name)), address)
    if width == 0:
        what = "network value in" if slash else "address pattern:"
        raise ValueError(f'bad {what} "{shown(text)}"')
    size = 1 << bits - length
    first = int.from_bytes(address[:width], "big")
    if first % size:
        packed = (first - first % size).to_bytes(width, "big")
        inet_ntop(AF_INET if width == WIDTH4 else AF_INET6, <const char *> packed, network, sizeof(network))
        raise ValueError(
            f'non-null host address bits in "{shown(text)}", '
            f'perhaps you should use "{network.decode()}/{length}" instead'
        )
    return width, first, first + size


def shown(bytes text) -> str:
    return text.decode("utf-8", "surrogateescape")


class Reader:
    """Reads rules: what they say (rules: line, pattern, value) and when (conditions, see flatten)."""

    def __init__(self, source) -> None:
        self.source = source
        self.rules = []
        self.conditions = []
        self.ifs = []  # open: (line, what parse_condition gives, first rule inside)

    def read(self) -> None:
        for line, text in self.source:
            text = text.strip(BLANKS)
            word, rest = split_word(text)
            try:
                if word == b"if":
                    self.ifs.append((line, parse_condition(rest), len(self.rules)))
                elif word == b"endif":
                    self.end_if(rest)
                else:
                    self.add_rule(line, text)
            except ValueError as error:
                self.source.warn(line, f"{error}: skipping this rule")
        self.source.warn_unclosed(line for line, *_ in self.ifs)
        while self.ifs:
            self.end_if(b"")

    def end_if(self, rest: bytes) -> None:
        if rest:
            raise ValueError("garbage after ENDIF")
        if not self.ifs:
            raise ValueError("ENDIF without IF")
        _, condition, begin = self.ifs.pop()
        self.conditions.append((*condition, begin, len(self.rules)))

    def add_rule(self, line: int, text: bytes) -> None:
        pattern, value = split_rule(text).groups()
        condition = parse_condition(pattern)
        if not value:
            raise ValueError("no lookup result")
        self.conditions.append((*condition, len(self.rules), len(self.rules) + 1))
        self.rules.append((line, pattern, value))


cdef class CidrTable(Table):
    """cidr:FILE or cidr:{ {rule}, {rule} }, from rules that a Reader has read."""

    cdef cidr c
    cdef bytes path
    cdef bytes texts    # what rules point into
    cdef tuple v4, v6   # what intervals point into

    def __cinit__(self, bytes type_name, reader):
        cdef stamp *read
        rules = reader.rules
        self.path = reader.source.file
        self.c.path = self.path
        self.c.count = len(rules)
        self.c.rules = <rule *> calloc(self.c.count + 1, sizeof(rule))
        if self.c.rules == NULL:
            raise MemoryError()
        self.take_rules(rules)
        self.v4 = flatten(reader.conditions, self.c.count, WIDTH4)
        self.v6 = flatten(reader.conditions, self.c.count, WIDTH6)
        set_intervals(&self.c.v4, self.v4, WIDTH4)
        set_intervals(&self.c.v6, self.v6, WIDTH6)
        if reader.source.stamp:
            read = &self.c.read
            read.device, read.inode, read.size, read.mtime_ns = reader.source.stamp
            self.t.changed = cidr_changed
        self.t.self = &self.c
        self.t.flags = DICT_FLAG_PATTERN
        self.t.lookup = cidr_lookup

    cdef int take_rules(self, list rules) except -1:
        """Copy what rules say; equal texts are stored once."""
        cdef dict places = {}
        cdef const char *start
        cdef rule *r = self.c.rules
        texts = bytearray()
        for _, pattern, value in rules:
            for text in (pattern, value):
                if places.setdefault(text, len(texts)) == len(texts):
                    texts += text
        self.texts = bytes(texts)
        start = self.texts
        for line, pattern, value in rules:
            r.line = line
            r.pattern = view_of(start + <size_t> places[pattern], len(pattern))
            r.value = view_of(start + <size_t> places[value], len(value))
            r += 1
        return 0

    def __dealloc__(self):
        free(self.c.rules)

    def explain(self, bytes key not None) -> list:
        cdef const rule *r = rule_of(&self.c, view_of(key, len(key)))
        if r == NULL:
            return []
        return [f"line {r.line}: {shown(r.pattern.ptr[:r.pattern.len])} {shown(r.value.ptr[:r.value.len])}"]


cdef void set_intervals(intervals *all, tuple flattened, size_t width):
    """Point to what flatten gave, which has to stay."""
    all.starts = <const unsigned char *> <const char *> <bytes> flattened[0]
    all.winners = <const uint32_t *> <const char *> <bytes> flattened[1]
    all.count = len(flattened[0]) // width
    all.width = width


def open_table(bytes type_name, bytes mapname, opening) -> CidrTable:
    reader = Reader(Rules("cidr", mapname, opening.host.warn))
    reader.read()
    return CidrTable(type_name, reader)
