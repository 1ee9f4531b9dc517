"""Writes a dot to the port given, waits a second for the reply and prints it. To be stopped meanwhile."""

import asyncio
import sys

import uvloop

from workers.dialogue import Dialogue


async def main(port: int) -> None:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(asyncio.Protocol, "127.0.0.1", port)
    dialogue = Dialogue(transport, loop)
    dialogue.write(b".\r\n")
    print(await dialogue.reply(1.0))
    dialogue.abort()


if __name__ == "__main__":
    loops = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    with asyncio.Runner(loop_factory=loops[sys.argv[2]]) as runner:
        runner.run(main(int(sys.argv[1])))
