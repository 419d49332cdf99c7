"""One end of tunnels of grpctunnel-py, with the Echo service or its caller behind it.

Roles, options and what is printed are those of tests/peers/go/grpctunnel, and its benchmarks' but for those of forward tunnels.
"""

import argparse
import asyncio
import os
import signal
import sys
import traceback

import grpc
from google.protobuf.wrappers_pb2 import StringValue
from grpc.aio import Metadata
from grpctunnel import PendingChannel, ReverseTunnelServer, TunnelServiceHandler, TunnelServiceHandlerOptions
from grpctunnel.proto.v1 import TunnelServiceServicer, TunnelServiceStub, add_TunnelServiceServicer_to_server

import bench
import checks
import echo

# No role waits longer for what has to happen at once.
PATIENCE = 10


def opener(context):
    """The id of who opened a tunnel."""
    return ",".join(value for key, value in context.invocation_metadata() if key == "x-agent-id")


class Service(TunnelServiceServicer):
    """Lets a tunnel be opened by who has the token, if there is one, and says who came and went."""

    def __init__(self, options, forward=None, reverse=None):
        self.token = options.token
        self.forward, self.reverse = forward, reverse

    async def OpenTunnel(self, requests, context):
        # A handler numbers the calls of all its tunnels together, and refuses those of the second one: each has its own.
        handler = TunnelServiceHandler()
        self.forward(handler)
        async for frame in self.admit(handler.service().OpenTunnel, requests, context):
            yield frame

    async def OpenReverseTunnel(self, requests, context):
        async for frame in self.admit(self.reverse.service().OpenReverseTunnel, requests, context):
            yield frame

    async def admit(self, serve, requests, context):
        said = [value for key, value in context.invocation_metadata() if key == "authorization"]
        if self.token and said != [f"Bearer {self.token}"]:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is not the one expected")
        print("tunnel", opener(context))
        try:
            async for frame in serve(requests, context):
                yield frame
        finally:
            print("gone", opener(context))


async def listen(options, service):
    server = grpc.aio.server()
    add_TunnelServiceServicer_to_server(service, server)
    port = server.add_insecure_port(options.listen)
    await server.start()
    print(f"listening {options.listen.rsplit(':', 1)[0]}:{port}")
    return server


async def forward_server(options, register, told):
    # While this refers to it, it is served.
    server = await listen(options, Service(options, forward=register))
    await told.wait()
    await server.stop(None)
    return True


async def forward_client(options, call, _told):
    async with grpc.aio.insecure_channel(options.server) as carrier:
        opening = PendingChannel(TunnelServiceStub(carrier)).start(metadata=says(options))
        through = await asyncio.wait_for(opening, PATIENCE)
        return await call(options, through)


async def reverse_hub(options, call, told):
    opened = asyncio.Semaphore(0)
    handler = TunnelServiceHandler(
        TunnelServiceHandlerOptions(
            affinity_key=lambda channel: opener(channel._adapter),
            on_reverse_tunnel_open=lambda _: opened.release(),
        )
    )
    # While this refers to it, it is served.
    _server = await listen(options, Service(options, reverse=handler))
    for _ in range(options.tunnels):
        ending, opening = asyncio.create_task(told.wait()), asyncio.create_task(opened.acquire())
        await asyncio.wait([ending, opening], return_when=asyncio.FIRST_COMPLETED)
        if told.is_set():
            return True
    through = handler.key_as_channel(options.key) if options.key else handler.as_channel()
    return await call(options, through)


async def reverse_agent(options, register, told):
    async with grpc.aio.insecure_channel(options.server) as carrier:

        async def serve(agent, stub):
            # That it was started is said of a tunnel that was refused, too, without a word why.
            _, why = await agent.serve(metadata=says(options))
            print("closed:" if stub.accepted else "refused:", repr(why))
            return stub.accepted

        # An agent numbers the calls of all its tunnels together, and refuses those of the second one: each has its own.
        agents, tunnels = [], []
        for _ in range(options.tunnels):
            stub = Opening(TunnelServiceStub(carrier))
            agent = ReverseTunnelServer(stub)
            register(agent)
            agents.append(agent)
            tunnels.append(asyncio.create_task(serve(agent, stub)))
        ending = asyncio.create_task(told.wait())
        await asyncio.wait([ending, asyncio.gather(*tunnels)], return_when=asyncio.FIRST_COMPLETED)
        if told.is_set():
            for agent in agents:
                await asyncio.wait_for(agent.stop(), PATIENCE)
            return True
        return all(tunnel.result() for tunnel in tunnels)


def says(options):
    """Who opens a tunnel."""
    said = [("x-agent-id", options.id)]
    if options.token:
        said.append(("authorization", f"Bearer {options.token}"))
    return Metadata(*said)


class Opening:
    """A stub that prints "ready" when its tunnel is accepted, which the library does not tell."""

    def __init__(self, stub):
        self.stub, self.accepted = stub, False

    def OpenReverseTunnel(self, **options):
        call = self.stub.OpenReverseTunnel(**options)

        async def announce():
            if any(key == "grpctunnel-negotiate" for key, _ in await call.initial_metadata() or ()):
                self.accepted = True
                print("ready")

        # While this refers to it, it runs.
        self.announcing = asyncio.create_task(announce())
        return call


async def call_echo(options, through):
    names = checks.ALL if options.checks is None else options.checks.split(",")
    return await checks.run(through, names)


# That of the library's examples. Its messages are a google.protobuf.StringValue on the wire.
DEMO = "test.EchoService/Echo"


def register_demo(to):
    async def answer(request, _context):
        text = StringValue.FromString(request).value
        print("request", text)
        return StringValue(value=f"Echo: {text}")

    to.register_method(DEMO, answer)


async def call_demo(_options, through):
    method = through.unary_unary(f"/{DEMO}", StringValue.SerializeToString, StringValue.FromString)

    async def call(text):
        answer = await asyncio.wait_for(method(StringValue(value=text)), PATIENCE)
        print("answer", answer.value)

    for number in range(3):
        await call(f"call {number + 1}")
    await asyncio.gather(*[call(f"call at once {number + 1}") for number in range(5)])
    return True


ROLES = {
    "forward-server": (forward_server, echo.register),
    "forward-client": (forward_client, call_echo),
    "reverse-hub": (reverse_hub, call_echo),
    "reverse-agent": (reverse_agent, echo.register),
    "bench-hub": (reverse_hub, bench.orders),
    "bench-agent": (reverse_agent, bench.register),
    "demo-hub": (reverse_hub, call_demo),
    "demo-agent": (reverse_agent, register_demo),
}


async def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=ROLES)
    parser.add_argument("--listen", default="127.0.0.1:0")
    parser.add_argument("--server")
    parser.add_argument("--id", default="laptop-1")
    parser.add_argument("--key")
    parser.add_argument("--token")
    parser.add_argument("--tunnels", type=int, default=1)
    parser.add_argument("--checks")
    parser.add_argument("--timeout", type=int, default=180)
    options = parser.parse_args()
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    role, work = ROLES[options.role]
    return await asyncio.wait_for(role(options, work, told), options.timeout)


if __name__ == "__main__":

    async def run():
        code = 1
        try:
            code = 0 if await main() else 1
        except Exception:
            traceback.print_exc()
        sys.stdout.flush()
        # The library's tasks would be waited for, some of which never end.
        os._exit(code)

    asyncio.run(run())
