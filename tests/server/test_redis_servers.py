"""test_redis_servers - our server before Redis alone, with sentinels, as a cluster, killed under load

The data do not change, so each answer is known: anything but that or RETRY is wrong. RETRY counts
while there is no master, and a little longer.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_redis import ClusterOf, RedisServer, Watched, is_linked, unavailable
from fix_redis_load import LONG, VALUES, Place
from fix_server import wait_until

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))


def test_alone_killed_and_restarted(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server, Place(server.uri) as place:
        server.put(VALUES)
        place.start_load()
        place.answered_since()
        assert place.retries == []
        server.kill()
        wait_until(lambda: place.retries, "a RETRY", LONG)
        place.answered_since()
        server.start()
        place.is_calm()
        server.pause()
        wait_until(lambda: "is down: Timeout" in place.log(), "down", LONG)
        server.resume()
        place.is_calm()
        place.end_load()


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    with Watched(tmp_path) as group:
        group.data[0].put(VALUES)
        group.data[0].ask("WAIT", 1, 20000)
        yield group


def test_sentinels_fail_over(watched: Watched) -> None:
    with Place(watched.uri) as place:
        place.start_load()
        place.answered_since()
        assert place.retries == []
        first = watched.master()
        other = watched.other()
        first.kill()
        wait_until(lambda: watched.master() is other, "failover", LONG)
        wait_until(place.all_answer, "answers", LONG)
        assert f"the master is 127.0.0.1:{other.port}" in place.log()
        place.is_calm()
        first.start()  # a replica from now on
        place.is_calm()
        watched.sentinels[0].kill()  # two are enough
        place.is_calm()
        place.end_load()


def role(server: RedisServer) -> str:
    return f"role:{server.client().info('replication')['role']}"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ClusterOf]:
    with ClusterOf(tmp_path) as group:
        group.put(VALUES)
        yield group


def test_cluster_fails_over(cluster: ClusterOf) -> None:
    with Place(cluster.uri) as place:
        place.start_load()
        place.answered_since()
        assert place.retries == []
        victim, heir = cluster.masters[0], cluster.replicas[0]
        others = keys_of(cluster, 1) | keys_of(cluster, 2)
        wait_until(lambda: is_linked(heir), "sync", LONG)
        victim.kill()
        wait_until(lambda: role(heir) == "role:master", "failover", LONG)
        wait_until(place.all_answer, "answers", LONG)
        assert not {key for _, key in place.retries} & others, place.log()[-3000:]
        place.is_calm()
        victim.start()
        place.is_calm()
        wait_until(lambda: role(victim) == "role:slave", "demotion", LONG)
        cluster.masters[1].pause()
        wait_until(lambda: role(cluster.replicas[1]) == "role:master", "failover", LONG)
        wait_until(place.all_answer, "answers", LONG)
        cluster.masters[1].resume()
        place.is_calm()
        move_slots(cluster)
        place.is_calm()
        place.end_load()


def keys_of(cluster: ClusterOf, number: int) -> set[bytes]:
    """Those of the load that this master has."""
    return {key for key in cluster.masters[number].client().scan_iter() if key.decode() in VALUES}


def move_slots(cluster: ClusterOf) -> None:
    """All slots of the third master with a key go to the first one that is there, while lookups come."""
    from redis.crc import key_slot

    source, target = cluster.masters[2], cluster.replicas[0]
    ids = {server.port: server.ask("CLUSTER", "MYID").decode() for server in (source, target)}
    for key in keys_of(cluster, 2):
        slot = key_slot(key)
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source.port])
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target.port])
        for one in source.ask("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.ask("MIGRATE", "127.0.0.1", target.port, one, 0, 5000)
        for server in (target, source):
            server.ask("CLUSTER", "SETSLOT", slot, "NODE", ids[target.port])
