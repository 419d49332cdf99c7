"""The work of benches/compare through a tunnel of grpctunnel-py: tests/peers/go/bench has the orders and their answers."""

import asyncio
import json
import sys
import time

from echo import NAME, received
from echo_pb2 import Payload
from echo_pb2_grpc import EchoStub

# What a unary call carries.
SMALL = b"\x07" * 100


async def one_call(stub):
    answer = await stub.Unary(Payload(data=SMALL))
    if len(answer.data) != len(SMALL):
        raise ValueError("the answer is not what was sent")


def percentiles(times):
    times.sort()

    def at(thousandths):
        return times[len(times) * thousandths // 1000] * 1e6 if times else 0

    return {"p50": at(500), "p99": at(990), "p99.9": at(999)}


async def callers(stub, count, millis):
    started, times = time.perf_counter(), []

    async def caller():
        while time.perf_counter() - started < millis / 1000:
            begun = time.perf_counter()
            await one_call(stub)
            times.append(time.perf_counter() - begun)

    await asyncio.gather(*[caller() for _ in range(count)])
    took = time.perf_counter() - started
    return {**percentiles(times), "calls": len(times), "rate": len(times) / took}


def rate(got, wanted, started):
    """In millions of bytes."""
    if got != wanted:
        raise ValueError(f"{got} bytes arrived instead of {wanted}")
    return {"rate": got / 1e6 / (time.perf_counter() - started)}


async def down(stub, size, each):
    count, started, got = size // each, time.perf_counter(), 0
    order = count.to_bytes(8, "big") + each.to_bytes(8, "big")
    async for answer in await stub.Download(Payload(data=order)):
        got += len(answer.data)
    return rate(got, count * each, started)


async def up(stub, size, each):
    count, started = size // each, time.perf_counter()

    async def messages():
        message = Payload(data=b"\x5a" * each)
        for _ in range(count):
            yield message

    answer = await stub.Upload(messages())
    return rate(int.from_bytes(answer.data, "big"), count * each, started)


async def chat(stub, size, each):
    count, started, got = size // each, time.perf_counter(), 0
    stream = await stub.Chat()

    async def send():
        message = Payload(data=b"\x5a" * each)
        for _ in range(count):
            await stream.write(message)
        await stream.done_writing()

    sending = asyncio.create_task(send())
    while (answer := await stream.read()) is not None:
        got += len(answer.data)
    await sending
    return rate(got, count * each, started)


async def downs(stub, streams, size, each):
    part, started = max(size // streams, each), time.perf_counter()
    await asyncio.gather(*[down(stub, part, each) for _ in range(streams)])
    got = part // each * each * streams
    return rate(got, got, started)


async def beside(stub, millis, size, each):
    started = time.perf_counter()

    async def bulk():
        got = 0
        while time.perf_counter() - started < millis / 1000:
            await down(stub, size, each)
            got += size // each * each
        return got / 1e6 / (time.perf_counter() - started)

    stream = asyncio.create_task(bulk())
    told = await callers(stub, 1, millis)
    return {**told, "bulk": await stream}


async def attempt(stub):
    """A call where the path may be down."""
    try:
        await asyncio.wait_for(one_call(stub), 1)
        return True
    except Exception:
        return False


async def first(stub):
    while not await attempt(stub):
        await asyncio.sleep(0.001)
    return {}


async def gap(stub, least, most):
    print(json.dumps({"calling": 1}))
    started = answered = time.perf_counter()
    longest = 0
    while time.perf_counter() - answered < most / 1000:
        if await attempt(stub):
            longest = max(longest, time.perf_counter() - answered)
            answered = time.perf_counter()
            if answered - started >= least / 1000:
                return {"gap": longest * 1000}
        await asyncio.sleep(0.001)
    return {}


ORDERS = {
    work.__name__: work for work in (first, callers, down, up, chat, downs, beside, gap)
}  # what is not here is not asked of Python


async def orders(_options, through):
    stub = EchoStub(through)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        what, *numbers = line.split()
        print(json.dumps(await ORDERS[what](stub, *map(int, numbers))))
    return True


async def serve_unary(request, _context):
    return request


async def serve_download(request, stream, _context):
    order = Payload.FromString(request).data
    message = Payload(data=b"\x5a" * int.from_bytes(order[8:], "big"))
    for _ in range(int.from_bytes(order[:8], "big")):
        await stream.send_message(message)


async def serve_upload(stream, _context):
    length = 0
    async for message in received(stream):
        length += len(Payload.FromString(message).data)
    return Payload(data=length.to_bytes(8, "big"))


async def serve_chat(stream, _context):
    async for message in received(stream):
        await stream.send_message(message)


def register(to):
    """As echo.register, for the service that is measured."""
    to.register_method(f"{NAME}/Unary", serve_unary)
    to.register_method(f"{NAME}/Download", serve_download, is_server_stream=True)
    to.register_method(f"{NAME}/Upload", serve_upload, is_client_stream=True)
    to.register_method(f"{NAME}/Chat", serve_chat, is_client_stream=True, is_server_stream=True)
