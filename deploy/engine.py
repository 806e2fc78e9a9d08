"""An engine in a process of its own, so that it can be killed: reads requests on standard input, one JSON object a
line, and answers each with a line in ANSWERS.

engine.py MODEL ANSWERS SETTINGS.json: SETTINGS are arguments of vllm.LLM beside those below.
"""

from __future__ import annotations

import json
import os
import sys
import time

os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", HF_HUB_OFFLINE="1", VLLM_CPU_KVCACHE_SPACE="1")


def main() -> None:
    from vllm import LLM, SamplingParams
    from vllm.distributed.kv_transfer import get_kv_transfer_group, has_kv_transfer_group
    from vllm.inputs import TokensPrompt

    model, out = sys.argv[1], open(sys.argv[2], "w", buffering=1)  # noqa: SIM115 - lives as long as the process
    settings = json.loads(sys.argv[3])
    llm = LLM(model, skip_tokenizer_init=True, dtype="bfloat16", enforce_eager=True, block_size=64, **settings)
    client = getattr(get_kv_transfer_group(), "_client", None) if has_kv_transfer_group() else None
    for line in sys.stdin:
        request = json.loads(line)
        sampling = SamplingParams(temperature=0, max_tokens=request["tokens"], ignore_eos=True, detokenize=False)
        prompts = [TokensPrompt(prompt_token_ids=prompt) for prompt in request["prompts"]]
        # One at a time unless told: what else is in a batch changes the rounding.
        batches = [prompts] if request.get("together") else [[prompt] for prompt in prompts]
        answers = []
        for batch in batches:
            began = time.perf_counter()
            done = llm.generate(batch, sampling, use_tqdm=False)
            seconds = time.perf_counter() - began
            answers += [
                {"tokens": list(one.outputs[0].token_ids), "cached": one.num_cached_tokens, "seconds": seconds}
                for one in done
            ]
        if request.get("forget"):
            llm.reset_prefix_cache()
        began = time.perf_counter()
        if client is not None:
            client.flush(60000)
        drain_ms = 1000 * (time.perf_counter() - began)
        stats = client.stats() if client is not None else {}
        print(json.dumps({"answers": answers, "drain_ms": drain_ms, "stats": stats}), file=out)


if __name__ == "__main__":
    main()
