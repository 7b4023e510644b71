"""What the tokenizer is to reach beside its peers, and whether it did."""

from typing import Any

# (threads, work, peer, the least ratio of its seconds to ours, the ratio wanted after that)
GOALS = [
    (1, "train TinyShakespeare to 4,096", "rustbpe", 4.0, 8.0),
    (1, "train TinyShakespeare to 4,096", "tokenizers", 15.0, 30.0),
    (1, "train english to 32,000", "rustbpe", 6.0, None),
    (1, "train english to 32,000", "tokenizers", 14.0, None),
    (1, "train english to 32,000, GPT-2's pattern", "gigatoken", 2.0, None),
    (1, "encode 8 MB of english to an array, warm", "tiktoken", 20.0, None),
    (1, "encode 8 MB of english to an array, warm", "tokenizers", 100.0, None),
    (1, "encode 8 MB of english to an array, warm", "gigatoken", None, 1.0),
    (1, "encode 8 MB of english to an array, warm", "fastokens", None, 1.0),
    (1, "encode 8 MB of english to a list, warm", "tiktoken", 6.0, 10.0),
    (1, "encode english to lists, fresh", "tiktoken", 7.0, 12.0),
    (1, "encode multilingual to lists, fresh", "tiktoken", 4.0, 12.0),
    (1, "encode english to arrays, fresh", "tiktoken", 7.0, 12.0),
    (1, "encode multilingual to arrays, fresh", "tiktoken", 4.0, 12.0),
    (1, "decode 8 MB of english, an array to bytes", "tiktoken", 5.0, 8.0),
    (1, "decode 8 MB of english, a list to text", "tiktoken", 1.5, 2.5),
    (1, "5000 calls of 13 bytes", "tiktoken", 1.0, None),
    (1, "5000 calls of 13 bytes", "gigatoken", None, 1.0),
    (1, "5000 calls of 100 bytes", "tiktoken", 1.0, None),
    (1, "5000 calls of 100 bytes", "gigatoken", None, 1.0),
    (1, "fresh process: import, train and encode TinyShakespeare", "tokenizers", 2.0, None),
    (1, "fresh process: import, train and encode TinyShakespeare", "rustbpe", None, 1.0),
]
TWO_THREADS, FRESH_PROCESS = 1.6, 0.3  # times one thread; seconds


def judge(found: dict[int, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Each goal with the ratio measured; one whose work or peer is missing is left out."""
    seconds = {(n, cell["work"]): cell["seconds"] for n, told in found.items() for cell in told}
    judged = []
    for threads, work, peer, least, later in GOALS:
        spent = seconds.get((threads, work), {})
        if peer in spent:
            judged.append(_verdict(work, peer, spent[peer] / spent["ours"], least, later))
    work = "train english to 32,000"
    if (1, work) in seconds and (2, work) in seconds:
        ratio = seconds[1, work]["ours"] / seconds[2, work]["ours"]
        judged.append(_verdict(f"{work}, two threads", "ours on one", ratio, None, TWO_THREADS))
    spent = seconds.get((1, "fresh process: import, train and encode TinyShakespeare"))
    if spent:
        ratio = FRESH_PROCESS / spent["ours"]
        judged.append(_verdict("fresh process", f"{FRESH_PROCESS} seconds", ratio, None, 1.0))
    return judged


def _verdict(
    work: str, peer: str, ratio: float, least: float | None, later: float | None
) -> dict[str, Any]:
    verdict: dict[str, Any] = {"work": work, "beside": peer, "ratio": round(ratio, 2)}
    if least is not None:
        verdict |= {"goal": least, "met": ratio >= least}
    if later is not None:
        verdict |= {"goal after that": later, "met after that": ratio >= later}
    return verdict
