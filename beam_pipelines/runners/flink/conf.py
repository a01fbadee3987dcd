"""What a cluster on this machine is configured with: Flink's and ZooKeeper's files, and the memory of its JVMs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

HOST = "127.0.0.1"
LOGGING = {
    "defaultLogLevel": "info",
    "showDateTime": "true",
    "dateTimeFormat": "yyyy-MM-dd'T'HH:mm:ss.SSS",
    "log.org.apache.flink.shaded.zookeeper3": "warn",
}
# Megabytes. Together 1.9 GB if all of it is used; managed memory is what a batch sorts in, and is taken when it does.
_FRAMEWORK_HEAP_MB, _TASK_HEAP_MB = 128, 512
_FRAMEWORK_DIRECT_MB, _TASK_DIRECT_MB, _NETWORK_MB = 128, 192, 256
HEAP_MB = _FRAMEWORK_HEAP_MB + _TASK_HEAP_MB
DIRECT_MB = _FRAMEWORK_DIRECT_MB + _TASK_DIRECT_MB + _NETWORK_MB


def flink_conf(folder: Path, *, slots: int, rest_port: int, zookeeper_port: int, store: Mapping[str, object]) -> str:
    """flink-conf.yaml, with the settings of where checkpoints are kept (`store`). Keys: https://nightlies.apache.org/flink/flink-docs-release-1.19/docs/deployment/config/"""
    settings = {
        "rest.address": HOST,
        "rest.bind-address": HOST,
        "rest.port": rest_port,
        "jobmanager.rpc.address": HOST,
        "jobmanager.bind-host": HOST,
        "taskmanager.host": HOST,
        "taskmanager.bind-host": HOST,
        "taskmanager.numberOfTaskSlots": slots,
        "taskmanager.cpu.cores": slots,
        "taskmanager.memory.framework.heap.size": f"{_FRAMEWORK_HEAP_MB}m",
        "taskmanager.memory.task.heap.size": f"{_TASK_HEAP_MB}m",
        "taskmanager.memory.framework.off-heap.size": f"{_FRAMEWORK_DIRECT_MB}m",
        "taskmanager.memory.task.off-heap.size": f"{_TASK_DIRECT_MB}m",
        "taskmanager.memory.network.min": f"{_NETWORK_MB}m",
        "taskmanager.memory.network.max": f"{_NETWORK_MB}m",
        "taskmanager.memory.managed.size": "512m",
        "taskmanager.memory.jvm-metaspace.size": "256m",
        "taskmanager.memory.jvm-overhead.min": "192m",
        "taskmanager.memory.jvm-overhead.max": "192m",
        "heartbeat.interval": 2_000,
        "heartbeat.timeout": 8_000,
        "restart-strategy.type": "fixed-delay",
        "restart-strategy.fixed-delay.attempts": 1_000,
        "restart-strategy.fixed-delay.delay": "1 s",
        "state.backend.type": "hashmap",
        **store,
        "high-availability.type": "zookeeper",
        "high-availability.storageDir": f"{folder.as_uri()}/recovery",
        "high-availability.zookeeper.quorum": f"{HOST}:{zookeeper_port}",
        "high-availability.zookeeper.client.session-timeout": 5_000,
        "high-availability.zookeeper.client.connection-timeout": 3_000,
        "high-availability.zookeeper.client.retry-wait": 500,
        "io.tmp.dirs": folder / "tmp",
        "web.tmpdir": folder / "tmp",
        "metrics.fetcher.update-interval": 1_000,
    }
    return "".join(f"{key}: {value}\n" for key, value in settings.items())


def zookeeper_conf(folder: Path, port: int) -> str:
    """zoo.cfg. Keys: https://zookeeper.apache.org/doc/r3.7.1/zookeeperAdmin.html"""
    settings = {
        "tickTime": 1_000,  # sessions last 2 to 20 of them
        "dataDir": folder / "zookeeper",
        "clientPort": port,
        "clientPortAddress": HOST,
        "admin.enableServer": "false",
    }
    return "".join(f"{key}={value}\n" for key, value in settings.items())
