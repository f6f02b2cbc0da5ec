"""A relay in a process of its own: ``python relay.py 'LISTEN>CONNECT' ...``, host:port or the path of a socket."""

from __future__ import annotations

import asyncio
import sys


async def _relay(*pairs: str) -> None:
    for pair in pairs:
        listen, _, target = pair.partition(">")
        host, _, port = listen.rpartition(":")

        async def accept(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: str = target
        ) -> None:
            try:
                if target.startswith("/"):
                    there, back = await asyncio.open_unix_connection(target)
                else:
                    host, _, port = target.rpartition(":")
                    there, back = await asyncio.open_connection(host, int(port))
            except OSError:
                writer.close()
                return
            await asyncio.gather(_pump(reader, back), _pump(there, writer))

        await asyncio.start_server(accept, host, int(port))
    print("ready", flush=True)
    await asyncio.Event().wait()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()
    except OSError:
        pass
    finally:
        sink.close()


if __name__ == "__main__":
    asyncio.run(_relay(*sys.argv[1:]))
