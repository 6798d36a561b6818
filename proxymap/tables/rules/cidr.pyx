"""cidr - rules that match IP addresses by network block

A rule file is read once, and turned into what it says of each address: sorted
intervals without gaps, per family, each with the first rule that matches there.
A lookup finds its interval by bisection, without the GIL; how many rules there
are, and how `if` nests them, does not matter then.

Source: cidr_table(5); tables.md 6; the warnings as Postfix 3.7 words them.
"""

import re
import sys
from array import array

from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc

from proxymap.base._buf cimport buf, memcpy, view, view_of
from proxymap.tables._table cimport Table, table
from proxymap._words cimport *

from proxymap.tables.rules.rules import Rules, split_word
from proxymap.config.source import BLANKS, base64_of_files
from proxymap.tables.flags import RHS_IS_FILE

cdef extern from "<arpa/inet.h>" nogil:
    enum: AF_INET
    enum: AF_INET6
    enum: INET6_ADDRSTRLEN
    int inet_pton(int family, const char *text, void *address)
    const char *inet_ntop(int family, const void *address, char *text, uint32_t size)

cdef extern from "<endian.h>" nogil:
    uint32_t be32toh(uint32_t)
    uint64_t be64toh(uint64_t)

cdef extern from *:
    ctypedef unsigned long long uint128_t "unsigned __int128"

cdef enum:
    WIDTH4 = 4    # bytes of an address
    WIDTH6 = 16

split_rule = re.compile(rb"([!\s]*\S*)\s*(.*)", re.DOTALL).fullmatch  # pattern, value

ctypedef fused address_t:
    uint32_t
    uint128_t


cdef struct rule:
    view pattern
    view value
    size_t line


cdef struct intervals:
    # All addresses of one family: interval n begins at starts[n] and ends before the next one.
    void *starts       # uint32_t or uint128_t, ascending; the first is 0
    uint32_t *winners  # which rule answers there; as many as there are rules: none
    size_t count


cdef struct cidr:
    intervals v4
    intervals v6
    rule *rules
    uint32_t count


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


cdef inline size_t interval_of(const address_t *starts, size_t count, address_t address) noexcept nogil:
    """The last interval that begins at or before an address; no step is a guess for the processor."""
    cdef size_t found = 0, half
    while count > 1:
        half = count // 2
        found += half * (starts[found + half] <= address)
        count -= half
    return found


cdef const rule *rule_of(const cidr *c, view key) noexcept nogil:
    """The rule that answers to a key, or NULL."""
    cdef unsigned char address[WIDTH6]
    cdef size_t width = address_parse(key, address)
    cdef uint32_t winner, number
    cdef uint64_t high, low
    if width == WIDTH4:
        memcpy(&number, address, 4)
        winner = c.v4.winners[interval_of[uint32_t](
            <uint32_t *> c.v4.starts, c.v4.count, be32toh(number))]
    elif width == WIDTH6:
        memcpy(&high, address, 8)
        memcpy(&low, address + 8, 8)
        winner = c.v6.winners[interval_of[uint128_t](
            <uint128_t *> c.v6.starts, c.v6.count, <uint128_t> be64toh(high) << 64 | be64toh(low))]
    else:
        return NULL
    return NULL if winner == c.count else &c.rules[winner]


cdef int cidr_lookup(table *t, view key, int *flags, buf *scratch, view *value) noexcept nogil:
    cdef const rule *r = rule_of(<const cidr *> t.self, key)
    if r == NULL:
        return STAT_NOKEY
    value[0] = r.value
    return STAT_OK


cdef class Counts:
    """For each rule, how many of its conditions are false: its own pattern, and each `if` around it.

    A tree over the rules: a node knows the smallest count below it, so that adding
    to a range of rules and finding the first rule with none both take log(rules).
    The children of node n are 2n and 2n + 1.
    """

    cdef int32_t *added   # to all rules below a node, by the node
    cdef int32_t *least   # the smallest count below a node, without what nodes above it add
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
    """Conditions to intervals of one family: (starts, winners), as C has them.

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
                starts += here.to_bytes(width, sys.byteorder)
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
    cdef unsigned char address[WIDTH6]
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

    def __init__(self, source, files: bool) -> None:
        """files: values are names of files whose content is wanted, in base64."""
        self.source, self.files = source, files
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
        if self.files:
            value = base64_of_files(value)
        self.conditions.append((*condition, len(self.rules), len(self.rules) + 1))
        self.rules.append((line, pattern, value))


cdef class CidrTable(Table):
    """cidr:FILE or cidr:{ {rule}, {rule} }, from rules that a Reader has read."""

    cdef cidr c
    cdef bytes texts  # what rules point into

    def __cinit__(self, bytes type_name, reader):
        rules = reader.rules
        self.c.count = len(rules)
        self.c.rules = <rule *> calloc(self.c.count + 1, sizeof(rule))
        if self.c.rules == NULL:
            raise MemoryError()
        self.take_rules(rules)
        take_intervals(&self.c.v4, flatten(reader.conditions, self.c.count, WIDTH4))
        take_intervals(&self.c.v6, flatten(reader.conditions, self.c.count, WIDTH6))
        self.loaded_from(reader.source.files)
        self.faults = reader.source.faults
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

    @property
    def entries(self):
        return self.c.count

    def __dealloc__(self):
        free(self.c.rules)
        free(self.c.v4.starts)
        free(self.c.v4.winners)
        free(self.c.v6.starts)
        free(self.c.v6.winners)

    def explain(self, bytes key not None) -> list:
        cdef const rule *r = rule_of(&self.c, view_of(key, len(key)))
        if r == NULL:
            return []
        return [f"line {r.line}: {shown(r.pattern.ptr[:r.pattern.len])} {shown(r.value.ptr[:r.value.len])}"]


cdef int take_intervals(intervals *all, tuple flattened) except -1:
    """Copy what flatten gave to memory that is aligned for addresses."""
    cdef bytes starts, winners
    starts, winners = flattened
    all.count = len(winners) // sizeof(uint32_t)
    all.starts = malloc(len(starts))
    all.winners = <uint32_t *> malloc(len(winners))
    if all.starts == NULL or all.winners == NULL:
        raise MemoryError()
    memcpy(all.starts, <const char *> starts, len(starts))
    memcpy(all.winners, <const char *> winners, len(winners))
    return 0


def open_table(bytes type_name, bytes mapname, opening) -> CidrTable:
    reader = Reader(Rules("cidr", mapname, opening.host.warn), opening.flags & RHS_IS_FILE != 0)
    reader.read()
    return CidrTable(type_name, reader)
