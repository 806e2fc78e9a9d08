"""An engine in a process of its own, so that it can be killed: reads requests on standard input, one JSON object a
line, and answers each with a line in ANSWERS.

engine.py MODEL ANSWERS [EXTRA.json]: EXTRA is the connector's extra_config; without it there is no connector.
"""

from __future__ import annotations

import json
import os
import sys

os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", HF_HUB_OFFLINE="1", VLLM_CPU_KVCACHE_SPACE="1")


def main() -> None:
    from vllm import LLM, SamplingParams
    from vllm.distributed.kv_transfer import get_kv_transfer_group
    from vllm.inputs import TokensPrompt

    model, out = sys.argv[1], open(sys.argv[2], "w", buffering=1)  # noqa: SIM115 - lives as long as the process
    transfer = None
    if len(sys.argv) > 3:
        transfer = {
            "kv_connector": "LatentkvConnector",
            "kv_connector_module_path": "latentkv.vllm",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": json.loads(sys.argv[3]),
        }
    # One request at a time: what else is in a batch changes the rounding.
    llm = LLM(
        model, skip_tokenizer_init=True, dtype="bfloat16", enforce_eager=True, block_size=64, max_model_len=2048,
        max_num_seqs=1, max_num_batched_tokens=256, kv_transfer_config=transfer,
    )  # fmt: skip
    for line in sys.stdin:
        request = json.loads(line)
        sampling = SamplingParams(temperature=0, max_tokens=request["tokens"], ignore_eos=True, detokenize=False)
        answers = []
        for prompt in request["prompts"]:
            answer = llm.generate(TokensPrompt(prompt_token_ids=prompt), sampling, use_tqdm=False)[0]
            answers.append({"tokens": list(answer.outputs[0].token_ids), "cached": answer.num_cached_tokens})
        if request.get("forget"):
            llm.reset_prefix_cache()
        client = get_kv_transfer_group()._client if transfer is not None else None
        if client is not None:
            client.flush(60000)
        print(json.dumps({"answers": answers, "stats": client.stats() if client is not None else {}}), file=out)


if __name__ == "__main__":
    main()
