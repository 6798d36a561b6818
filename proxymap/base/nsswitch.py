"""nsswitch - where the name service looks for users, groups and hosts

Source: nsswitch.conf(5).
"""

NSSWITCH = "/etc/nsswitch.conf"


def sources_of(database: str) -> list[str]:
    """sources_of - the sources that nsswitch.conf names, in order. Raises OSError if it cannot be read."""
    try:
        with open(NSSWITCH, encoding="utf-8", errors="replace") as file:
            for line in file:
                name, colon, rest = line.partition("#")[0].partition(":")
                if colon and name.strip() == database:
                    return [word for word in rest.split() if not word.startswith("[")]
    except FileNotFoundError:
        pass
    return ["files"]
