"""sender_logins - who may send as an address: those whom the alias of that name leads to

For smtpd_sender_login_maps. With `sales: alice, bob` in the alias table alice and bob may
send as sales@example.com; alice may send as alice@example.com, which has no alias. An
alias that leads to an alias is followed; files, commands and :include: name nobody.

    module  = /etc/postfix/plugins/sender_logins.py
    aliases = lmdb:/etc/aliases
    domain  = example.com
"""

from proxymap.tables import SlowTable

DEPTH = 10  # aliases that lead to aliases


class Table(SlowTable):
    def __init__(self, setup):
        self.aliases = setup.table(setup["aliases"])
        self.domains = setup["domain"].encode().lower().replace(b",", b" ").split()

    def lookup(self, key):
        user, _, domain = key.lower().partition(b"@")
        if not user or domain not in self.domains:
            return None
        return b",".join(sorted(self.people(user, DEPTH, set()))) or None

    def people(self, name, depth, seen):
        """The logins that a name stands for."""
        if name in seen:
            return set()
        seen.add(name)
        alias = self.aliases.lookup(name) if depth else None
        if alias is None:
            return {name}
        found = set()
        for item in alias.split(b","):
            user, at, domain = item.strip().lower().partition(b"@")
            if user and not user.startswith((b"/", b"|", b":", b'"')) and (not at or domain in self.domains):
                found |= self.people(user, depth - 1, seen)
        return found
