"""dialback.echo.v1.Echo behind a tunnel of grpctunnel-py, steered by metadata as tests/common/echo.rs lists.

What version 0.3.0 of the library cannot do is not done here either: an answer without bytes is never sent, a status has no
details, and a handler is not told that its caller left, so that a call which hangs does so until this process ends.
"""

import asyncio

import grpc
from grpc.aio import AioRpcError, Metadata

from echo_pb2 import Payload

NAME = "dialback.echo.v1.Echo"


def pattern(index, size):
    """The bytes of Download's message number index."""
    start = index % 251
    return (bytes(range(251)) * ((start + size) // 251 + 1))[start : start + size]


def digest(chunks):
    """What Upload answers: the length and the FNV-1a checksum of all bytes."""
    length, checksum = 0, 0xCBF29CE484222325
    for chunk in chunks:
        length += len(chunk)
        for byte in chunk:
            checksum = ((checksum ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return length.to_bytes(8, "big") + checksum.to_bytes(8, "big")


def failure(code, message):
    """What a handler raises to end its call with a status."""
    return AioRpcError(code, Metadata(), Metadata(), details=message)


class Plan:
    """What the metadata asks for."""

    def __init__(self, sent):
        self.sent = list(sent or ())
        self.returned = Metadata(*[(key, value) for key, value in self.sent if key.startswith("x-")])
        self.count = self.number("echo-count", 1)
        self.size = self.number("echo-size", 0)
        self.delay = self.number("echo-delay-ms", 0) / 1000
        self.hang = self.number("echo-hang", 0) != 0
        self.status, self.after = None, None
        if self.text("echo-status") is not None and not self.hang:
            code = self.number("echo-status", 0)
            code = next(known for known in grpc.StatusCode if known.value[0] == code)
            self.status = failure(code, self.text("echo-message") or "")
            self.after = self.number("echo-status-after", 0)

    def text(self, wanted):
        return next((value for key, value in self.sent if key == wanted), None)

    def number(self, key, otherwise):
        value = self.text(key)
        if value is not None and not value.isdecimal():
            raise failure(grpc.StatusCode.INVALID_ARGUMENT, f"{key} is not a fitting number: {value!r}")
        return otherwise if value is None else int(value)

    async def pause(self):
        if self.delay:
            await asyncio.sleep(self.delay)

    async def end(self, method):
        if self.hang:
            print("hanging", method)
            await asyncio.Event().wait()
        if self.status:
            raise self.status

    async def answer(self, method, stream, context, messages):
        """Sends the headers at once, then answers until there are no more, then does as end does."""
        await context.set_trailing_metadata(self.returned)
        if self.after != 0:
            await stream.send_response_headers(self.returned)
            sent = 0
            async for message in messages:
                await self.pause()
                await stream.send_message(message)
                sent += 1
                if sent == self.after:
                    break
        await self.end(method)


async def received(stream):
    """All the messages of a caller, as bytes."""
    while True:
        try:
            message = await stream.recv_message()
        except StopAsyncIteration:
            return
        yield message


async def unary(request, context):
    plan = Plan(context.invocation_metadata())
    if plan.status is None:
        # The context has no way to set them; the stream behind it has.
        await context._stream.set_response_headers(plan.returned)
    await context.set_trailing_metadata(plan.returned)
    await plan.pause()
    await plan.end("Unary")
    return request


async def download(_request, stream, context):
    plan = Plan(context.invocation_metadata())

    async def messages():
        for index in range(plan.count):
            yield Payload(data=pattern(index, plan.size))

    await plan.answer("Download", stream, context, messages())


async def upload(stream, context):
    plan = Plan(context.invocation_metadata())
    chunks = [Payload.FromString(message).data async for message in received(stream)]
    if plan.status is None:
        await stream.set_response_headers(plan.returned)
    await context.set_trailing_metadata(plan.returned)
    await plan.pause()
    await plan.end("Upload")
    return Payload(data=digest(chunks))


async def chat(stream, context):
    plan = Plan(context.invocation_metadata())
    await plan.answer("Chat", stream, context, received(stream))


def register(to):
    """Adds the service to what serves tunnels. With its register_service, only unary methods would be given messages."""
    to.register_method(f"{NAME}/Unary", unary)
    to.register_method(f"{NAME}/Download", download, is_server_stream=True)
    to.register_method(f"{NAME}/Upload", upload, is_client_stream=True)
    to.register_method(f"{NAME}/Chat", chat, is_client_stream=True, is_server_stream=True)
