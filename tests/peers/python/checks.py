"""Calls an Echo through a tunnel of grpctunnel-py, and tells what is wrong with its answers.

Left out is what version 0.3.0 of the library cannot do as a caller:

- messages without bytes are never sent, so every request has some;
- deadlines and cancelling: a timeout is ignored, and a call that is given up is not ended;
- the details of a status are dropped;
- a caller that still sends hears nothing of an early status, and waits for room for ever;
- a status CANCELLED of a stream is taken for its end.

It gives no headers and trailers either, but for the trailers of an error; they are taken from the stream below.
"""

import asyncio

import grpc
from grpc.aio import Metadata

from echo import digest, pattern
from echo_pb2 import Payload
from echo_pb2_grpc import EchoStub

# No check may take longer.
LIMIT = 20


def steered(*steering):
    return Metadata(*steering)


def wants(condition, otherwise):
    if not condition:
        raise AssertionError(otherwise)


async def echoes(stub, data):
    answer = await stub.Unary(Payload(data=data))
    wants(answer.data == data, f"sent {len(data)} bytes, got {len(answer.data)} others")


async def unary(stub):
    await echoes(stub, b"hello")


async def empty_answers(stub):
    stream = await stub.Download(Payload(data=b"-"), metadata=steered(("echo-count", "3")))
    answers = [answer.data async for answer in stream]
    wants(answers == [b"", b"", b""], f"got {answers}")


async def metadata(stub):
    chat = await stub.Chat(metadata=steered(("x-word", "one"), ("x-word", "two")))
    await chat.write(Payload(data=b"hello"))
    wants((await chat.read()).data == b"hello", "another message")
    await chat.done_writing()
    wants(await chat.read() is None, "there is a further message")
    for place, found in (("headers", chat._stream._headers), ("trailers", chat._stream._trailers)):
        words = [value for key, value in found or () if key == "x-word"]
        wants(words == ["one", "two"], f"the {place} are {found}")


async def status(stub):
    ends = (("echo-status", "9"), ("echo-message", "not now"), ("x-word", "one"))

    def is_it(error):
        words = [value for key, value in error.trailing_metadata() or () if key == "x-word"]
        found = (error.code(), error.details(), words)
        wants(found == (grpc.StatusCode.FAILED_PRECONDITION, "not now", ["one"]), f"got {found}")

    try:
        await stub.Unary(Payload(data=b"-"), metadata=steered(*ends))
        wants(False, "there is no status")
    except grpc.aio.AioRpcError as error:
        is_it(error)
    more = (("echo-count", "9"), ("echo-size", "10"), ("echo-status-after", "2"))
    stream = await stub.Download(Payload(data=b"-"), metadata=steered(*ends, *more))
    answers = 0
    try:
        async for _ in stream:
            answers += 1
        wants(False, "the stream has no status")
    except grpc.aio.AioRpcError as error:
        is_it(error)
    wants(answers == 2, f"{answers} answers before the status")


# As checks/grpctunnel.go has them, but for none.
SIZES = [1, *range((16 << 10) - 6, (16 << 10) + 2), *range((64 << 10) - 6, (64 << 10) + 2), 8 << 20]


async def sizes(stub):
    for size in SIZES:
        await echoes(stub, pattern(size, size))


async def sizes_streamed(stub):
    chat = await stub.Chat()

    async def send():
        for size in SIZES:
            await chat.write(Payload(data=pattern(size, size)))
        await chat.done_writing()

    sending = asyncio.create_task(send())
    for size in SIZES:
        answer = await chat.read()
        wants(answer is not None and answer.data == pattern(size, size), f"of {size} bytes came others")
    wants(await chat.read() is None, "there is a further message")
    await sending


async def downloads(stub, count, size):
    steering = steered(("echo-count", str(count)), ("echo-size", str(size)))
    index = 0
    async for answer in await stub.Download(Payload(data=b"-"), metadata=steering):
        wants(answer.data == pattern(index, size), f"message {index} is another one")
        index += 1
    wants(index == count, f"got {index} messages")


async def large_download(stub):
    await downloads(stub, 3, 4 << 20)


async def download(stub):
    await downloads(stub, 500, 2000)


async def upload(stub):
    sent = [pattern(index, 10_000) for index in range(50)]

    async def messages():
        for data in sent:
            yield Payload(data=data)

    answer = await stub.Upload(messages())
    wants(answer.data == digest(sent), f"wanted the digest {digest(sent)}, got {answer.data}")


async def chat(stub):
    stream = await stub.Chat()
    for index in range(20):
        sent = pattern(index, 100)
        await stream.write(Payload(data=sent))
        answer = await stream.read()
        wants(answer is not None and answer.data == sent, f"message {index} is another one")
    await stream.done_writing()
    wants(await stream.read() is None, "there is a further message")


async def half_close(stub):
    """It has nothing more to say before the first answer leaves."""
    stream = await stub.Chat(metadata=steered(("echo-delay-ms", "20")))
    for size in range(1, 6):
        await stream.write(Payload(data=pattern(0, size)))
    await stream.done_writing()
    lengths = [len(answer.data) async for answer in stream]
    wants(lengths == [1, 2, 3, 4, 5], f"the answers have {lengths} bytes")


async def concurrent(stub):
    async def caller(number):
        for call in range(1, 11):
            await echoes(stub, pattern(number, 1000 * call))

    await asyncio.gather(*[caller(number) for number in range(50)])


ALL = {
    "unary": unary,
    "empty-answers": empty_answers,
    "metadata": metadata,
    "status": status,
    "sizes": sizes,
    "sizes-streamed": sizes_streamed,
    "large-download": large_download,
    "download": download,
    "upload": upload,
    "chat": chat,
    "half-close": half_close,
    "concurrent": concurrent,
}


async def run(channel, names):
    """Runs the named checks, prints "ok NAME" or "FAIL NAME: why" for each, and tells whether all were ok."""
    stub = EchoStub(channel)
    all_ok = True
    for name in names:
        try:
            await asyncio.wait_for(ALL[name](stub), LIMIT)
            print("ok", name)
        except Exception as error:
            all_ok = False
            print(f"FAIL {name}: {error!r}".replace("\n", "; "))
    return all_ok
