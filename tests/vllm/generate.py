"""Run by test_restart.py in a process of its own, so that it can be killed: answers prompts greedily with vLLM.

generate.py MODEL PROMPTS.json OUT.json [EXTRA.json]: EXTRA is the connector's extra_config; without it no connector.
Writes OUT when everything that it computed is stored, and then sleeps until it is killed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", HF_HUB_OFFLINE="1", VLLM_CPU_KVCACHE_SPACE="1")


def main() -> None:
    from vllm import LLM, SamplingParams
    from vllm.distributed.kv_transfer import get_kv_transfer_group
    from vllm.inputs import TokensPrompt

    model, prompts, out = sys.argv[1], json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3])
    transfer = None
    if len(sys.argv) > 4:
        transfer = {
            "kv_connector": "LatentkvConnector",
            "kv_connector_module_path": "latentkv.vllm",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": json.loads(sys.argv[4]),
        }
    # One request at a time: what else is in a batch changes the rounding.
    llm = LLM(
        model, dtype="bfloat16", enforce_eager=True, block_size=64, max_model_len=2048, max_num_seqs=1,
        kv_transfer_config=transfer,
    )  # fmt: skip
    sampling = SamplingParams(temperature=0, max_tokens=48, ignore_eos=True)
    answers = []
    for prompt in prompts:
        answer = llm.generate(TokensPrompt(prompt_token_ids=prompt), sampling, use_tqdm=False)[0]
        answers.append({"tokens": list(answer.outputs[0].token_ids), "cached": answer.num_cached_tokens})
    if transfer is not None:
        client = get_kv_transfer_group()._client
        if client is not None:
            client.flush(60000)
    scratch = out.with_suffix(".part")
    scratch.write_text(json.dumps(answers))
    scratch.rename(out)
    time.sleep(600)


if __name__ == "__main__":
    main()
