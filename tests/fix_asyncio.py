"""fix_asyncio - ends a stand-in for a server, and its event loop, without leaving anything open"""

import asyncio
import threading


def end_loop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    """Stop the loop that runs on that thread, when its tasks have ended and closed what they have open."""
    asyncio.run_coroutine_threadsafe(_end_tasks(), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def close_server(server: asyncio.Server) -> None:
    """Listen no more. Who was accepted just now is served: asyncio would leave that connection open."""
    for listener in server.sockets:
        asyncio.get_running_loop().remove_reader(listener.fileno())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    server.close()


async def _end_tasks() -> None:
    await asyncio.sleep(0)  # a connection that has just come gets its task
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.sleep(0)  # cancelled before it begins, a task closes nothing
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0)
