"""A gRPC client that knows an address and nothing else: messages and methods come from server reflection.

usage: reflection.py HOST:PORT
"""

import sys

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

INSTRUMENT = "NSE_EQ|PYTHON"
# 2024-01-02 09:15 in Mumbai, the open of a session.
OPEN_SECONDS = 1_704_167_100
MINUTES = 30
TIMEOUT_SECONDS = 30


class Service:
    """Calls the unary methods of one service by their names."""

    def __init__(self, channel, pool, name):
        self.channel, self.pool, self.name = channel, pool, name
        self.descriptor = pool.FindServiceByName(name)

    def call(self, method_name, metadata=(), **fields):
        method = self.descriptor.FindMethodByName(method_name)
        request = GetMessageClass(method.input_type)
        answer = GetMessageClass(method.output_type)
        rpc = self.channel.unary_unary(
            f"/{self.name}/{method_name}",
            request_serializer=request.SerializeToString,
            response_deserializer=answer.FromString,
        )
        return rpc.with_call(request(**fields), metadata=metadata, timeout=TIMEOUT_SECONDS)


def minute(index):
    """Closes rise by one a minute."""
    close = 100.0 + index
    return {
        "open_time": {"seconds": OPEN_SECONDS + 60 * index},
        "open": close - 1.0,
        "high": close + 0.5,
        "low": close - 1.5,
        "close": close,
        "volume": 10.0,
    }


def check(claim, *what):
    if not claim:
        raise SystemExit(f"not as expected: {what}")


def main(address):
    channel = grpc.insecure_channel(address)
    reflection = ProtoReflectionDescriptorDatabase(channel)
    services = set(reflection.get_services())
    for name in ["ingestion", "aggregation", "indicator", "sequence", "optimizer"]:
        full_name = f"candlemesh.{name}.v1.{name.capitalize()}Service"
        check(full_name in services, full_name, sorted(services))
    pool = DescriptorPool(reflection)
    ingestion = Service(channel, pool, "candlemesh.ingestion.v1.IngestionService")
    aggregation = Service(channel, pool, "candlemesh.aggregation.v1.AggregationService")
    indicator = Service(channel, pool, "candlemesh.indicator.v1.IndicatorService")

    batch = {"instrument_key": INSTRUMENT, "timeframe": "1m", "candles": [minute(i) for i in range(MINUTES)]}
    for stored, unchanged in [(MINUTES, 0), (0, MINUTES)]:
        answer, _ = ingestion.call("PutCandles", batch=batch)
        check((answer.outcome.stored, answer.outcome.unchanged) == (stored, unchanged), answer)

    for engine in ["v1", "v2"]:
        metadata = [("candlemesh-engine", engine)]
        answer, call = aggregation.call("GetCandles", metadata, instrument_key=INSTRUMENT, timeframe="5m")
        check(dict(call.initial_metadata()).get("candlemesh-engine") == engine, call.initial_metadata())
        check(len(answer.candles) == MINUTES // 5, answer)
        first = answer.candles[0]
        check((first.open, first.high, first.low, first.close, first.volume) == (99.0, 104.5, 98.5, 104.0, 50.0), first)
        check((first.source_count, first.complete) == (5, True), first)
        check(not first.HasField("open_interest"), first)

        answer, _ = indicator.call(
            "ComputeIndicators", metadata, instrument_key=INSTRUMENT, timeframe="1m", indicators=["sma:9"]
        )
        check(len(answer.open_time_ms) == MINUTES, answer)
        (column,) = answer.columns
        check(column.name == "sma:9", column)
        check([(r.start, r.end) for r in column.null_ranges] == [(0, 8)], column.null_ranges)
        # The mean of nine values that rise by one is the middle one.
        check(abs(column.values[-1] - (100.0 + MINUTES - 1 - 4)) < 1e-9, column.values[-1])

    try:
        aggregation.call("GetCandles", instrument_key="NSE_EQ|NOBODY", timeframe="5m")
    except grpc.RpcError as error:
        check(error.code() == grpc.StatusCode.NOT_FOUND and "NSE_EQ|NOBODY" in error.details(), error)
    else:
        raise SystemExit("an unknown instrument was answered")


if __name__ == "__main__":
    main(sys.argv[1])
