"""rewriting - addresses of an old domain become addresses of the new one, by a rule

For canonical_maps, recipient_canonical_maps or virtual_alias_maps. first.last+box@old.example
becomes first.last+box@new.example; with `dots = no` what is before the + loses its dots.
Every other address stays as it is.

    module = /etc/postfix/plugins/rewriting.py
    from   = old.example
    to     = new.example
    dots   = yes
"""

from proxymap.tables import SlowTable


class Table(SlowTable):
    def __init__(self, setup):
        self.old, self.new = setup["from"].encode().lower(), setup["to"].encode()
        self.dots = setup.get("dots", "yes") == "yes"

    def lookup(self, key):
        local, _, domain = key.rpartition(b"@")
        if not local or domain.lower() != self.old:
            return None
        user, plus, extension = local.partition(b"+")
        if not self.dots:
            user = user.replace(b".", b"") or user
        return user + plus + extension + b"@" + self.new

    def explain(self, key):
        yield f"addresses of {self.old.decode()} become addresses of {self.new.decode()}"
