"""What the programs of this folder have in common.

A program is given cells in `CELLS`: JSON objects with `case`, `way`, `transport`, `model` and
`base_url`. It runs some of them at once, those of the case `many` when the others are over, and
prints each as a JSON line with `saw`: what the client's own API showed.
"""

import asyncio
import json
import os
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

RESULTS = {"weather": "sun", "population": "2800000"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"The {name} of a city.",
            "strict": True,
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
    for name in RESULTS
]
PATIENCE = 5
"""Seconds of silence after which a client gives up. In the case `silence` there are more."""
SHORT = 2
"""Seconds after which a client leaves that can only leave by a timeout; less than the grace period,
since what comes after that is something to read."""
MANY = 50
AT_ONCE = 10
WAIT = ("silence", "cancel", "retry")


async def run(program):
    """Run `program(cell)`, which may be a coroutine function or one for a thread, for each cell."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(8 * MANY))
    cells = json.loads(os.environ["CELLS"])
    at_once = asyncio.Semaphore(AT_ONCE)

    async def in_turn(cell):
        async with at_once:
            await _run(program, cell)

    waiting = [asyncio.create_task(_run(program, cell)) for cell in cells if cell["case"] in WAIT]
    await asyncio.gather(*(in_turn(each) for each in cells if each["case"] not in (*WAIT, "many")))
    await asyncio.gather(*waiting)
    for cell in cells:
        if cell["case"] == "many":
            await _run(program, cell)


async def _run(program, cell):
    number = MANY if cell["case"] == "many" else 1
    asked = [{**cell, "question": f"How is Rome? ({at})"} for at in range(number)]
    began = time.monotonic()
    answers = await asyncio.gather(*(_saw(program, each) for each in asked))
    cell["seconds"] = time.monotonic() - began
    cell["saw"] = answers[0] if number == 1 else answers
    print(json.dumps(cell), flush=True)


async def _saw(program, cell):
    try:
        if asyncio.iscoroutinefunction(program):
            return await program(cell)
        return await asyncio.to_thread(program, cell)
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        return {"crashed": f"{type(error).__name__}: {error}"}


def known(**saw):
    """Only what there was."""
    return {key: value for key, value in saw.items() if value not in (None, "", 0, [], {})}


def failure(error, **saw):
    """An exception of openai-python's, which others pass on as well."""
    return known(
        error=type(error).__name__,
        status=getattr(error, "status_code", None),
        code=error.code,
        type=error.type,
        message=(error.body or {}).get("message"),
        **saw,
    )
