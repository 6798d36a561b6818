"""soak_redis - masters are killed, paused and restarted at random under load; no answer may be wrong

    make soak-redis                          # ten minutes
    python tests/soak_redis.py --minutes 60

Half of the time with sentinels, half with a cluster. A node that was away comes back before the
next one goes, and has all data before that, so that nothing is lost by Redis itself.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import tempfile
import time
from pathlib import Path

from fix_redis import ClusterOf, RedisServer, Watched
from fix_redis_load import LONG, VALUES, Place
from fix_server import lookup, wait_until


def data_of(group: Watched | ClusterOf) -> list[RedisServer]:
    return group.data if isinstance(group, Watched) else group.all


def settled(group: Watched | ClusterOf) -> bool:
    """Does each replica have all data?"""
    roles = [server.client().info("replication") for server in data_of(group)]
    masters = sum(role["role"] == "master" for role in roles)
    linked = [role.get("master_link_status") == "up" for role in roles if role["role"] != "master"]
    return masters == (1 if isinstance(group, Watched) else 3) and all(linked)


def harm(place: Place, group: Watched | ClusterOf) -> str:
    victim = random.choice(data_of(group))
    how = random.choice(["kill", "pause", "both"])
    seconds = random.uniform(0.1, 8)
    if how == "pause":
        victim.pause()
        time.sleep(seconds)
        victim.resume()
    else:
        victim.kill()
        time.sleep(seconds if how == "both" else 0)
        victim.start()
    wait_until(lambda: settled(group), "all of them", LONG)
    return f"{how} {victim.port} {seconds:.1f} s"


def soak(kind: type[Watched] | type[ClusterOf], seconds: float) -> None:
    until = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(prefix="pm-redis-") as folder, kind(Path(folder)) as group:
        data = group if isinstance(group, ClusterOf) else group.data[0]
        data.put(VALUES)
        wait_until(lambda: settled(group), "all of them", LONG)
        with Place(group.uri) as place:
            place.start_load()
            while time.monotonic() < until:
                done = harm(place, group)
                print(
                    f"{kind.__name__}: {done}; {sum(place.answers):,} answers, {len(place.retries):,} RETRY"
                )
                assert place.wrong == [], place.wrong[:5]
                place.is_calm()
            place.end_load()


def old_master() -> None:
    """One that slept through a failover wakes up as the master that it was, with old data."""
    with tempfile.TemporaryDirectory(prefix="pm-redis-") as folder, Watched(Path(folder)) as group:
        group.data[0].put(VALUES)
        with Place(group.uri) as place, contextlib.closing(group.data[1].client()) as other:
            place.start_load()
            group.data[0].pause()
            wait_until(lambda: other.info("replication")["role"] == "master", "failover", LONG)
            wait_until(place.all_answer, "answers", LONG)
            place.end_load()
            other.set("k0", "new")
            group.data[0].resume()
            until = time.monotonic() + 30
            with place.connect() as peer:
                while time.monotonic() < until:
                    assert dict(peer.ask(lookup(place.table, b"k0")))[b"value"] == b"new"
            assert group.data[0].client().info("replication")["role"] == "slave"
    print("an old master is asked no more")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10)
    seconds = parser.parse_args().minutes * 60
    old_master()
    for kind in (Watched, ClusterOf):
        soak(kind, seconds / 2)
    print("no answer was wrong")


if __name__ == "__main__":
    main()
