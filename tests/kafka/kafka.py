"""Sends traces of the OpenTelemetry Python SDK through the shim and Kafka, whose broker is killed again and again, and
looks for each of them behind Jaeger's ingester, in Cassandra, by Jaeger's query API.

Everything listens on free loopback ports and writes below one temporary folder. Prints a line for each round; exits 1
unless every span is there as it was sent.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import otlp_json
from matrix import CLIENTS, make_exporter, make_spans
from neighbours import Process, QueryApi, Shim, free_port, wait_for
from opentelemetry.exporter.otlp.json.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from otlp_json import Spans

TOPIC = "jaeger-spans"
PARTITIONS = 4
ROUNDS = 3
TRACES_A_ROUND = 100
# When in a round the broker is killed, and when it is started again: by the number of the trace.
KILLED_AT, STARTED_AT = 30, 70
# What a virtual machine takes to come up beside another, and all of a round to arrive.
PATIENCE_S = 180
HEAP = ["-Xms128m", "-Xmx512m", "-XX:TieredStopAtLevel=1"]
# What Cassandra asks of Java 17 (its jvm17-server.options).
EXPORTS = (
    "java.base/jdk.internal.misc",
    "java.base/jdk.internal.ref",
    "java.base/sun.nio.ch",
    "java.management.rmi/com.sun.jmx.remote.internal.rmi",
    "java.rmi/sun.rmi.registry",
    "java.rmi/sun.rmi.server",
    "java.sql/java.sql",
    "jdk.unsupported/sun.misc",
)
OPENS = (
    "java.base/java.io",
    "java.base/java.lang.module",
    "java.base/java.nio",
    "java.base/java.util",
    "java.base/java.util.concurrent",
    "java.base/java.util.concurrent.atomic",
    "java.base/jdk.internal.loader",
    "java.base/jdk.internal.math",
    "java.base/jdk.internal.module",
    "java.base/jdk.internal.ref",
    "java.base/jdk.internal.reflect",
    "java.base/jdk.internal.util.jar",
    "java.base/sun.nio.ch",
    "jdk.management/com.sun.management.internal",
)


class Kafka(Process):
    """One broker, which is its own controller."""

    patience_s = PATIENCE_S

    def __init__(self, jars: str, scratch: Path) -> None:
        port, controller = free_port(), free_port()
        self.address = f"127.0.0.1:{port}"
        properties = {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "listeners": f"PLAINTEXT://{self.address},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://{self.address}",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
            "log.dirs": scratch / "kafka",
            # Of a topic that is made when somebody asks for it.
            "num.partitions": PARTITIONS,
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 1,
        }
        path = scratch / "kafka.properties"
        path.write_text("".join(f"{key}={value}\n" for key, value in properties.items()), encoding="utf-8")
        java = ["java", *HEAP, "-cp", f"{jars}/*"]
        cluster = "lanternlanternlanternA"
        format_storage = [*java, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(path)]
        subprocess.run(format_storage, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._command = [*java, "kafka.Kafka", str(path)]
        self._port = port
        self.start()

    def start(self) -> None:
        """Starts it, without waiting until it is up."""
        super().__init__(self._command, [self._port], {})


class Cassandra(Process):
    """One node."""

    patience_s = PATIENCE_S

    def __init__(self, jars: str, scratch: Path) -> None:
        port, storage = free_port(), free_port()
        self.address = f"127.0.0.1:{port}"
        folder = scratch / "cassandra"
        # YAML takes JSON.
        config = {
            "cluster_name": "lantern-test",
            "num_tokens": 1,
            "partitioner": "org.apache.cassandra.dht.Murmur3Partitioner",
            "commitlog_sync": "periodic",
            "commitlog_sync_period": "1000ms",
            "data_file_directories": [f"{folder}/data"],
            "commitlog_directory": f"{folder}/commitlog",
            "saved_caches_directory": f"{folder}/saved_caches",
            "hints_directory": f"{folder}/hints",
            "cdc_raw_directory": f"{folder}/cdc",
            "listen_address": "127.0.0.1",
            "storage_port": storage,
            "rpc_address": "127.0.0.1",
            "start_native_transport": True,
            "native_transport_port": port,
            "endpoint_snitch": "SimpleSnitch",
            "seed_provider": [
                {
                    "class_name": "org.apache.cassandra.locator.SimpleSeedProvider",
                    "parameters": [{"seeds": f"127.0.0.1:{storage}"}],
                }
            ],
        }
        path = scratch / "cassandra.yaml"
        path.write_text(json.dumps(config), encoding="utf-8")
        flags = [f"--add-exports={package}=ALL-UNNAMED" for package in EXPORTS]
        flags += [f"--add-opens={package}=ALL-UNNAMED" for package in OPENS]
        flags += [f"-Dcassandra.config=file://{path}", f"-Dcassandra.storagedir={folder}"]
        flags += ["-Dcassandra-foreground=yes", "-Djdk.attach.allowAttachSelf=true"]
        daemon = "org.apache.cassandra.service.CassandraDaemon"
        super().__init__(["java", *HEAP, *flags, "-cp", f"{jars}/*", daemon], [port], {})


class Jaeger(Process):
    """Jaeger v2, as far as `config` makes it one of its parts; Cassandra is its storage."""

    patience_s = PATIENCE_S

    def __init__(self, program: str, cassandra: Cassandra, path: Path, ports: list[int], config: dict[str, Any]) -> None:
        connection = {"servers": [cassandra.address], "tls": {"insecure": True}}
        storage = {"cassandra": {"schema": {"keyspace": "jaeger_v1_test", "create": True}, "connection": connection}}
        config["extensions"] = {"jaeger_storage": {"backends": {"storage": storage}}, **config["extensions"]}
        config["service"] = {
            "extensions": list(config["extensions"]),
            "pipelines": {
                "traces": {"receivers": list(config["receivers"]), "exporters": list(config["exporters"])},
            },
            "telemetry": {"metrics": {"level": "none"}},
        }
        path.write_text(json.dumps(config), encoding="utf-8")
        super().__init__([program, "--config", f"file:{path}"], ports, {})


class Query(Jaeger):
    """What is asked for traces."""

    def __init__(self, program: str, cassandra: Cassandra, scratch: Path) -> None:
        http, grpc = free_port(), free_port()
        self.api = QueryApi(http)
        endpoints = {"http": {"endpoint": f"127.0.0.1:{http}"}, "grpc": {"endpoint": f"127.0.0.1:{grpc}"}}
        config: dict[str, Any] = {
            "extensions": {"jaeger_query": {"storage": {"traces": "storage"}, **endpoints}},
            "receivers": {"nop": None},
            "exporters": {"nop": None},
        }
        super().__init__(program, cassandra, scratch / "query.json", [http], config)


class Ingester(Jaeger):
    """From Kafka to the storage."""

    def __init__(self, program: str, cassandra: Cassandra, kafka: Kafka, scratch: Path) -> None:
        receiver = {
            "brokers": [kafka.address],
            "traces": {"topic": TOPIC, "encoding": "otlp_proto"},
            "initial_offset": "earliest",
        }
        config: dict[str, Any] = {
            "extensions": {},
            "receivers": {"kafka": receiver},
            "exporters": {"jaeger_storage_exporter": {"trace_storage": "storage"}},
        }
        super().__init__(program, cassandra, scratch / "ingester.json", [], config)


def main() -> int:
    """Starts all of it, sends round by round, and tells which spans did not arrive whole."""
    parser = argparse.ArgumentParser(description="the shim, Kafka, Jaeger's ingester, Cassandra, Jaeger's query")
    for name in ("shim", "jaeger", "kafka", "cassandra"):
        parser.add_argument(f"--{name}", required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        with Cassandra(args.cassandra, scratch) as cassandra, Kafka(args.kafka, scratch) as kafka, Query(
            args.jaeger, cassandra, scratch
        ) as query, Ingester(args.jaeger, cassandra, kafka, scratch), Shim(
            args.shim, "grpc", f"kafka://{kafka.address}/{TOPIC}", "--queue-dir", str(scratch / "queue")
        ) as shim:
            return send_and_find(shim, kafka, query.api)


def send_and_find(shim: Shim, kafka: Kafka, query: QueryApi) -> int:
    """All rounds; how many of them lost or changed something."""
    failed = 0
    exporters = [make_exporter(client, shim) for client in CLIENTS]
    for number in range(1, ROUNDS + 1):
        sent = send_round(f"round-{number}", exporters, kafka)
        spans, left = sum(map(len, sent)), list(sent)
        problems = wait_for(lambda: differences(left, query), PATIENCE_S)
        print(f"{'FAIL' if problems else 'PASS'} round {number}: {spans} spans of {len(sent)} traces", flush=True)
        for problem in problems:
            print(f"     {problem}", file=sys.stderr)
        failed += bool(problems)
    for exporter in exporters:
        exporter.shutdown()
    print("some spans are missing or were changed" if failed else "every span arrived as it was sent")
    return 1 if failed else 0


def send_round(service: str, exporters: list[SpanExporter], kafka: Kafka) -> list[Spans]:
    """Sends traces, each acknowledged, with no broker for some of them; what was sent."""
    sent = []
    for number in range(TRACES_A_ROUND):
        if number == KILLED_AT:
            kafka.kill()
        elif number == STARTED_AT:
            kafka.start()
        spans = make_spans(service)
        result = exporters[number % len(exporters)].export(spans)
        if result is not SpanExportResult.SUCCESS:
            raise RuntimeError(f"the shim did not take trace {number} of {service}")
        sent.append(otlp_json.spans_of([encode_spans(spans).to_json()]))
    return sent


def differences(left: list[Spans], query: QueryApi) -> list[str]:
    """What is wrong with the first of the traces that is not there as it was sent; those before it need no other look."""
    while left:
        if problems := query.differences(left[0]):
            return problems
        left.pop(0)
    return []


if __name__ == "__main__":
    sys.exit(main())
