"""Sends chat requests with the client of `vllm bench serve`; runs in vLLM's environment.

python replay.py BASE_URL MODEL TOKENS CONCURRENCY REQUESTS.jsonl

Sends all requests once for each line on standard input, and prints how many seconds that took.
"""

import asyncio
import json
import sys
import time
from pathlib import Path

import aiohttp
from vllm.benchmarks.lib.endpoint_request_func import RequestFuncInput, async_request_openai_chat_completions


async def main(base: str, model: str, tokens: str, concurrency: str, path: str) -> None:
    requests = [
        RequestFuncInput(
            prompt="",
            prompt_len=0,
            api_url=f"{base}/chat/completions",
            output_len=int(tokens),
            model=model,
            chat_messages=[{"role": "user", **json.loads(line)}],
            extra_body={"temperature": 0.0},
        )
        for line in Path(path).read_text(encoding="utf-8").splitlines()
    ]
    limit = asyncio.Semaphore(int(concurrency))
    connector = aiohttp.TCPConnector(limit=int(concurrency), limit_per_host=int(concurrency))
    async with aiohttp.ClientSession(connector=connector, trust_env=False) as session:

        async def send(request: RequestFuncInput) -> bool:
            async with limit:
                return (await async_request_openai_chat_completions(request, session)).success

        print("ready", flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            start = time.perf_counter()
            done = await asyncio.gather(*map(send, requests))
            print(time.perf_counter() - start if all(done) else "failed", flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
